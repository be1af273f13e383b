#!/bin/bash
# Running servers over TCP, in turns, one JSON line a cell.
#
#   network.sh TIDELOG RIVALS DATA ROUNDS NAME=SPEC... >> network.jsonl
#
# SPEC of a Tidelog cluster:  tidelog:ADDRESS,ADDRESS,ADDRESS:PID,PID,PID
#         of a rival:         PEER:ADDRESS:PID,PID   as its client in RIVALS takes it (`netclients --peer PEER --addr ADDRESS`)
# All servers are up already and keep their data on the disk that holds DATA; their processes' time is counted.
# CELLS, S and W as in single.sh. PIPELINED="256 4" adds a line of its own for each Tidelog cluster: so many records in flight
# over so many connections, instead of a connection for each.
set -u
TIDELOG=$1 RIVALS=$2 DATA=$3 ROUNDS=$4
shift 4
. "$(dirname "$0")/quiet.sh"
CELLS=${CELLS:-$(for p in 128 1024 16384; do for w in 1 16 256; do echo $p:$w; done; done)}
S=${S:-1.2} W=${W:-0.5}
mkdir -p "$DATA"
run() { # name=spec payload writers [connections]
  local name=${1%%=*} spec=${1#*=}
  local kind=${spec%%:*} pids=${spec##*:} addresses
  addresses=${spec#*:}; addresses=${addresses%:*}
  if [ "$kind" = tidelog ]; then
    local load="--closed $3"
    [ -n "${4:-}" ] && load="--pipelined $3 --connections $4"
    timeout 90 "$TIDELOG" bench append --cluster "$addresses" --servers "$pids" --payload "$2" --seconds "$S" --rounds 1 \
      --warmup "$W" --dir "$DATA" --no-device --peers --label "$name${4:+-pipelined}" $load
  else
    timeout 90 "$RIVALS/netclients" --peer "$kind" --addr "$addresses" --pids "$pids" --payload "$2" --writers "$3" \
      --secs "$S" --warm "$W" --label "$name" 2> /dev/null
  fi
}
for round in $(seq "$ROUNDS"); do
  for c in $CELLS; do
    for server in "$@"; do cell run "$server" "${c%:*}" "${c#*:}"; done
  done
  if [ -n "${PIPELINED:-}" ]; then
    read -r flying connections <<< "$PIPELINED"
    for server in "$@"; do
      case ${server#*=} in tidelog:*) cell run "$server" 1024 "$flying" "$connections" ;; esac
    done
  fi
done
