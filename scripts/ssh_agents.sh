#!/bin/bash
# Runs dlframe-agent on several hosts over ssh. All have this folder under the same path, shared or not. From the project's root:
#   scripts/ssh_agents.sh start sweeps/vae_beta.yaml gpu1 gpu2 gpu3
#   scripts/ssh_agents.sh stop sweeps/vae_beta.yaml
set -eu

what=${1:-} file=${2:-}
[ -n "$file" ] || { echo 'usage: scripts/ssh_agents.sh start sweeps/FILE.yaml HOST ..., or stop sweeps/FILE.yaml' >&2; exit 2; }
shift 2
name=$(basename "${file%.*}") started="runs/$(basename "${file%.*}").started" # a line per agent: host and process
mkdir -p runs
quoted() { printf %q "$1"; } # for the shell of the host

case "$what" in
  start) for host; do
      # CHANGE: settings of your hosts: variables like `DATA_ROOT=/data` or `DEVICE_NAME=cluster` before `nohup`, options like `--devices 0,1` after the sweep file
      there="cd $(quoted "$PWD") && { PATH=$(quoted "$PWD/.venv/bin"):\$PATH nohup dlframe-agent $(quoted "$file") >> $(quoted "runs/$name.$host.log") 2>&1 < /dev/null & echo \$!; }"
      pid=$(ssh -n "$host" "$there")
      echo "$host $pid" | tee -a "$started"
    done ;;
  stop) while read -r host pid; do ssh -n "$host" kill -TERM "$pid" || true; done < "$started"
    rm "$started" ;;
  *) echo "ssh_agents.sh: the first argument must be start or stop, got $what" >&2; exit 2 ;;
esac
