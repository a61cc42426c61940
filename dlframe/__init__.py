"""Literate experiments with latent-variable models: `import dlframe as df`"""

__version__ = '0.1.0'

from typing import TYPE_CHECKING

from .front import front_names, front_object

if TYPE_CHECKING:  # the names of the front, for type checkers and editors
    from .architectures import (
        Conditional as Conditional,
        Conv as Conv,
        Deconv as Deconv,
        MLP as MLP,
        decoder as decoder,
        encoder as encoder,
        predictor as predictor,
    )
    from .callbacks import Checkpoint as Checkpoint, Evaluate as Evaluate, StopEarly as StopEarly
    from .classifier import Classifier as Classifier
    from .data import Data as Data, Items as Items
    from .datasets import dataset as dataset
    from .evaluation import (
        AnnealedLogLikelihood as AnnealedLogLikelihood,
        ELBO as ELBO,
        Evaluator as Evaluator,
        LogLikelihood as LogLikelihood,
        PriorSamples as PriorSamples,
        Reconstructions as Reconstructions,
        Terms as Terms,
    )
    from .gan import GAN as GAN, VAEGAN as VAEGAN
    from .image_sets import images as images
    from .latents import (
        ActiveUnits as ActiveUnits,
        Interpolation as Interpolation,
        KLPerLatent as KLPerLatent,
        LatentMap as LatentMap,
        RateDistortion as RateDistortion,
        Traversal as Traversal,
    )
    from .loading import best as best, curves as curves, load as load, runs as runs
    from .models import Model as Model
    from .notebooks import parameters as parameters
    from .optimization import Optimization as Optimization
    from .predictions import (
        Accuracy as Accuracy,
        Calibration as Calibration,
        Confusion as Confusion,
        TargetError as TargetError,
    )
    from .prior_checks import AggregatePosterior as AggregatePosterior
    from .priors import prior as prior
    from .ramps import Ramp as Ramp
    from .reruns import add_results as add_results, rerun as rerun
    from .run import Run as Run
    from .specs import Part as Part, make as make
    from .vae import VAE as VAE
    from .vib import VIB as VIB


def __getattr__(name):
    return front_object(name)


def __dir__():
    return sorted({*globals(), *front_names()})
