"""A server of W&B on loopback, as much of one as the client and its agents need to log, resume and
read back runs, and to sweep; it keeps what it is told in memory
"""

import gzip
import json
import re
import sys
import threading
import time
import warnings
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, unquote, urlsplit

import yaml

ENTITY, KEY = 'somebody', '0123456789abcdef' * 2 + '01234567'


class Stub:
    "What the server knows"

    def __init__(self):
        self.runs = {}
        self.asked = []
        self.unknown = []
        self.refuses = False
        self.trouble = None
        self.last = None
        self.lock = threading.RLock()
        self.sweeps, self.agents, self.queue, self.stopped, self.given = {}, {}, [], set(), []

    def run(self, project, name):
        return self.runs.setdefault(
            (project, name),
            {
                'project': project,
                'name': name,
                'displayName': name,
                'config': {},
                'history': [],
                'summary': {},
                'files': {},
                'sweep': None,
                'state': 'running',
                'ended': [],
            },
        )


class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def log_message(self, *args):
        pass

    def parse_request(self):
        "Also: what goes wrong at the time"
        known, trouble = super().parse_request(), self.server.stub.trouble
        while self.server.stub.trouble == 'silent':
            time.sleep(0.05)
        if trouble == 'failing':
            self.body(), self.answer({'errors': [{'message': 'out of order'}]}, 500)
        if trouble:
            self.close_connection = True
        return known and not trouble

    def answer(self, body=b'{}', status=200):
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        self.send_response(status)
        self.send_header('Content-Type', 'application/json')
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(body)

    def body(self):
        data = self.rfile.read(int(self.headers.get('Content-Length', 0)))
        return gzip.decompress(data) if self.headers.get('Content-Encoding') == 'gzip' else data

    def do_GET(self):
        kept = self.file()
        self.answer(
            b'', 200 if urlsplit(self.path).path == '/' else 404
        ) if kept is None else self.answer(kept)

    def do_PUT(self):
        project, name, file = self.place()
        data = self.body()
        # in the middle of it
        if file == self.server.stub.last:
            self.server.stub.trouble = 'gone'
        if self.server.stub.trouble:
            return
        with self.server.stub.lock:
            self.server.stub.run(project, name)['files'][file] = data
        self.answer()

    def place(self):
        return re.fullmatch(
            r'/kept/([^/]+)/([^/]+)/(.+)', unquote(urlsplit(self.path).path)
        ).groups()

    def file(self):
        if not self.path.startswith('/kept/'):
            return None
        project, name, file = self.place()
        return self.server.stub.run(project, name)['files'].get(file)

    def do_POST(self):
        stub, path, data = self.server.stub, urlsplit(self.path).path, self.body()
        with stub.lock:
            if stub.refuses:
                self.answer({'errors': [{'message': 'this key is not known'}]}, 401)
            elif path == '/graphql':
                self.graphql(stub, json.loads(data))
            elif path.endswith('/file_stream'):
                self.stream(stub, path, json.loads(data))
            else:
                self.answer()

    def graphql(self, stub, request):
        name = (
            request.get('operationName')
            or re.search(r'(?:query|mutation)\s+(\w+)', request['query'])[1]
        )
        variables = request.get('variables') or {}
        stub.asked.append(name)
        if name in resolvers:
            self.answer({'data': resolvers[name](stub, variables, self.server.url)})
        else:
            stub.unknown.append(name)
            self.answer({'data': None, 'errors': [{'message': f'{name} is not known here'}]})

    def stream(self, stub, path, told):
        project, name = unquote(path).split('/')[3:5]
        run, files = stub.run(project, name), told.get('files', {})
        history = files.get('wandb-history.jsonl', {'offset': 0, 'content': []})
        run['history'][history['offset'] : history['offset'] + len(history['content'])] = map(
            json.loads, history['content']
        )
        if told.get('preempting'):
            run['ended'].append('preempting')
            run['state'] = 'preempting'
        for row in files.get('wandb-summary.json', {}).get('content', []):
            run['summary'] = json.loads(row)
        if told.get('complete'):
            run['ended'].append(told.get('exitcode'))
            run['state'] = {0: 'finished', 255: 'killed'}.get(
                told.get('exitcode'), 'preempted' if run['state'] == 'preempting' else 'failed'
            )
        self.answer({'exitcode': None, 'limits': {}})


def resolver(f):
    return resolvers.setdefault(f.__name__, f)


resolvers = {}


def project_of(name):
    return {
        'id': name,
        'internalId': '1',
        'name': name,
        'entity': {'id': ENTITY, 'name': ENTITY},
        'entityName': ENTITY,
        'readOnly': False,
    }


@resolver
def Viewer(stub, v, url):
    return {
        'viewer': {
            'id': ENTITY,
            'entity': ENTITY,
            'username': ENTITY,
            'name': ENTITY,
            'email': '',
            'flags': '{}',
            'admin': False,
            'deletedAt': None,
            'teams': {'edges': []},
            'apiKeys': {'edges': []},
        }
    }


@resolver
def UpsertBucket(stub, v, url):
    if v.get('id'):
        project, name = v['id'].split('/')
    else:
        project, name = v['project'], v['name']
    new = (project, name) not in stub.runs
    run = stub.run(project, name)
    run['config'].update(json.loads(v.get('config') or '{}'))
    if run['state'] != 'preempting':
        run['state'] = 'running'
    run['displayName'] = v.get('displayName') or run['displayName']
    run['sweep'] = v.get('sweep') or run['sweep']
    return {'upsertBucket': {'inserted': new, 'bucket': bucket(run)}}


@resolver
def GetDefaultEntity(stub, v, url):
    return Viewer(stub, v, url)


@resolver
def OrganizationCoreWeaveOrganizationID(stub, v, url):
    return {'entity': {'organization': None}}


@resolver
def CreateRunFiles(stub, v, url):
    files = [
        {'name': f, 'uploadUrl': f'{url}/kept/{v["project"]}/{v["run"]}/{quote(f)}'}
        for f in v['files']
    ]
    return {
        'createRunFiles': {
            'runID': f'{v["project"]}/{v["run"]}',
            'uploadHeaders': [],
            'files': files,
        }
    }


@resolver
def RunResumeStatus(stub, v, url):
    run = stub.runs.get((v['project'], v['name']))
    return {'model': {**project_of(v['project']), 'bucket': run and bucket(run)}}


@resolver
def ServerFeaturesQuery(stub, v, url):
    return {'serverInfo': {'features': []}}


@resolver
def Run(stub, v, url):
    run = stub.runs.get((v['project'], v['name']))
    return {'project': run and {'internalId': '1', 'run': bucket(run)}}


@resolver
def RunFiles(stub, v, url):
    run = stub.runs[v['project'], v['name']]
    kept = [f for f in run['files'] if not v.get('fileNames') or f in v['fileNames']]
    edges = [
        {
            'cursor': f,
            'node': {
                'id': f,
                'name': f,
                'url': (at := f'{url}/kept/{v["project"]}/{v["name"]}/{quote(f)}'),
                'directUrl': at,
                'sizeBytes': len(run['files'][f]),
                'mimetype': '',
                'updatedAt': None,
                'md5': '',
            },
        }
        for f in kept
    ]
    return {
        'project': {
            'internalId': '1',
            'run': {
                'fileCount': len(kept),
                'files': {'edges': edges, 'pageInfo': {'endCursor': '', 'hasNextPage': False}},
            },
        }
    }


def known_sweep(stub, project, name):
    "What `wandb sweep` has made, or what runs said that they belong to"
    runs = [r for (p, _), r in stub.runs.items() if p == project and r['sweep'] == name]
    if not runs and name not in stub.sweeps:
        return None
    config = stub.sweeps.get(name, 'method: grid')
    return {
        '__typename': 'Sweep',
        'id': name,
        'name': name,
        'displayName': name,
        'method': yaml.safe_load(config)['method'],
        'state': 'RUNNING',
        'description': '',
        'bestLoss': None,
        'config': config,
        'createdAt': '2026-01-01T00:00:00',
        'updatedAt': None,
        'heartbeatAt': None,
        'earlyStopJobRunning': False,
        'controller': None,
        'scheduler': None,
        'runCount': len(runs),
        'runCountExpected': None,
        'runs': {'edges': []},
    }


@resolver
def GetSweep(stub, v, url):
    return {'project': {'sweep': known_sweep(stub, v['project'], v['name'])}}


@resolver
def SweepWithRuns(stub, v, url):
    return {'project': {'sweep': known_sweep(stub, v['project'], v['sweep'])}}


@resolver
def UpsertSweep(stub, v, url):
    name = f'sweep{len(stub.sweeps) + 1}'
    stub.sweeps[name] = v['config']
    return {
        'upsertSweep': {
            'sweep': {'name': name, 'project': project_of(v['projectName'])},
            'configValidationWarnings': [],
        }
    }


@resolver
def CreateAgent(stub, v, url):
    name = f'agent{len(stub.agents) + 1}'
    stub.agents[name] = {'sweep': v['sweep'], 'project': v['projectName'], 'runs': set()}
    return {'createAgent': {'agent': {'id': name}}}


@resolver
def Heartbeat(stub, v, url):
    """An agent says what it runs, and is told what to run or stop: what was preempted first, then
    what is in `stub.queue`, a configuration each; when nothing is left it may go
    """
    agent, active = stub.agents[v['id']], {*json.loads(v['runState'])}
    mine = {name: stub.runs[agent['project'], name] for name in agent['runs']}
    sweep = agent['sweep']
    for name in mine.keys() - active:
        # without a word
        if mine[name]['state'] in ('pending', 'running'):
            mine[name]['state'] = 'crashed'
    commands = [
        {'type': 'stop', 'run_id': name}
        for name in active & (stub.stopped | ended_early(stub, sweep))
    ]
    again = [name for name, run in mine.items() if run['state'] == 'preempted']
    if not active and (again or stub.queue):
        commands.append(give_out(stub, agent, again[0] if again else None))
    elif not active:
        commands.append({'type': 'exit'})
    return {'agentHeartbeat': {'agent': {'id': v['id']}, 'commands': json.dumps(commands)}}


def give_out(stub, agent, name):
    "A new run, or the one of this name again"
    config = yaml.safe_load(stub.sweeps[agent['sweep']])
    if not name:
        name = f'{agent["sweep"]}r{len(stub.given)}'
        run = stub.run(agent['project'], name)
        run.update(
            sweep=agent['sweep'],
            config={k: {'value': c} for k, c in stub.queue.pop(0).items()},
            asked={},
        )
        run['asked'] = dict(run['config'])
    run = stub.run(agent['project'], name)
    run['state'] = 'pending'
    agent['runs'].add(name), stub.given.append(name)
    return {
        'type': 'run',
        'id': name,
        'run_id': name,
        'program': config['program'],
        'args': run['asked'],
    }


def ended_early(stub, sweep):
    "The runs that W&B's own rule would end, by what has arrived of their histories"
    config = yaml.safe_load(stub.sweeps[sweep])
    runs = [r for r in stub.runs.values() if r['sweep'] == sweep]
    if 'early_terminate' not in config:
        return set()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # it is written for an older pydantic
        from sweeps.hyperband_stopping import hyperband_stop_runs
        from sweeps.run import SweepRun
    return {
        run.name
        for run in hyperband_stop_runs(
            [SweepRun(name=r['name'], state=r['state'], sampledHistory=r['history']) for r in runs],
            config,
        )
    }


@resolver
def Runs(stub, v, url):
    wanted = re.search(r'"sweep": *"([^"]*)"', v.get('filters') or '')
    runs = [
        r
        for (p, _), r in stub.runs.items()
        if p == v['project'] and (not wanted or r['sweep'] == wanted[1])
    ]
    return {
        'project': {
            **project_of(v['project']),
            'runCount': len(runs),
            'runs': {
                'edges': [{'cursor': r['name'], 'node': bucket(r)} for r in runs],
                'pageInfo': {'endCursor': '', 'hasNextPage': False},
            },
        }
    }


def bucket(run):
    "All that is ever asked of a run"
    return {
        'id': f'{run["project"]}/{run["name"]}',
        'name': run['name'],
        'displayName': run['displayName'],
        'description': '',
        'notes': '',
        'tags': [],
        'group': None,
        'jobType': None,
        'config': json.dumps(run['config']),
        'summaryMetrics': json.dumps(run['summary']),
        'sweepName': run['sweep'],
        'sweep': run['sweep'] and {'name': run['sweep']},
        'project': project_of(run['project']),
        'projectId': 1,
        'historyLineCount': len(run['history']),
        'historyTail': json.dumps([json.dumps(r) for r in run['history'][-1:]]),
        'logLineCount': 0,
        'eventsLineCount': 0,
        'eventsTail': '[]',
        'wandbConfig': '{"t": 1}',
        'state': run['state'],
        'createdAt': '2026-01-01T00:00:00',
        'heartbeatAt': '2026-01-01T00:00:00',
        'systemMetrics': '{}',
        'historyKeys': {'keys': {}, 'lastStep': len(run['history'])},
        'user': {'name': ENTITY, 'username': ENTITY},
        'readOnly': False,
        'commit': None,
        'host': None,
    }


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, address):
        # clients hang up
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, address)


class Service:
    """A server that can have trouble: it is `'gone'`, `'failing'` (it answers 500), `'silent'` (it
    takes a connection and says nothing) or `None`, well
    """

    def __init__(self):
        self.stub, self.port, self.listening = Stub(), 0, None
        self.become(None)

    def become(self, trouble):
        self.stub.trouble = trouble  # also for connections that are kept alive
        if trouble == 'gone' and self.listening:
            self.listening.shutdown(), self.listening.server_close()
            self.listening = None
        elif trouble != 'gone' and not self.listening:
            self.listening = Server(('127.0.0.1', self.port), Handler)
            self.port = self.listening.server_address[1]
            self.url = f'http://127.0.0.1:{self.port}'
            self.listening.stub, self.listening.url = self.stub, self.url
            threading.Thread(target=self.listening.serve_forever, args=(0.05,), daemon=True).start()


@contextmanager
def server():
    "A running server: its address is `server.url`, what it knows `server.stub`"
    s = Service()
    try:
        yield s
    finally:
        s.become('gone')
