#!/bin/bash
# One node in this process against rivals, in turns, one JSON line a cell.
#
#   single.sh TIDELOG RIVALS DATA ROUNDS >> single.jsonl
#
# TIDELOG  the tidelog binary
# RIVALS   a directory of rival binaries: `floor` and `embedded --peer NAME`, which print the same line; - for none
# DATA     a directory on the disk to be measured
# CELLS="1024:1 1024:256" (payload:writers), PEERS="tidelog tidelog-queue tidelog-threads tidelog-inline raw floor raft-engine", S (seconds), W (warm-up),
# SEGMENT (a segment that a run fits into stands for a log that recycles its segments) choose otherwise.
set -u
TIDELOG=$1 RIVALS=$2 DATA=$3 ROUNDS=${4:-5}
. "$(dirname "$0")/quiet.sh"
CELLS=${CELLS:-$(for p in 128 1024 16384; do for w in 1 16 256; do echo $p:$w; done; done)}
PEERS=${PEERS:-"tidelog tidelog-queue tidelog-threads tidelog-inline raw floor raft-engine"}
S=${S:-1.2} W=${W:-0.3} SEGMENT=${SEGMENT:-2GiB}
mkdir -p "$DATA"
run() { # peer payload writers
  local load="--payload $2 --closed $3 --seconds $S --warmup $W --rounds 1 --dir $DATA --no-device --peers"
  local rival="--payload $2 --writers $3 --secs $S --warm $W"
  case $1 in
  tidelog) timeout 60 "$TIDELOG" bench append $load --segment-size "$SEGMENT" ;;
  tidelog-inline | tidelog-queue | tidelog-threads)
    timeout 60 "$TIDELOG" bench append $load --segment-size "$SEGMENT" "--${1#tidelog-}" ;;
  raw | blocking | glommio | tokio-uring) timeout 60 "$TIDELOG" bench append $load --baseline "$1" ;;
  floor) timeout 60 "$RIVALS/floor" --label floor --sync dsync --depth 2 --file "$DATA/floor.scratch" $rival ;;
  *) timeout 60 "$RIVALS/embedded" --peer "$1" --dir "$DATA/rival.data" $rival 2> /dev/null
     rm -rf "$DATA/rival.data" ;;
  esac
}
for round in $(seq "$ROUNDS"); do
  for c in $CELLS; do
    for peer in $PEERS; do
      case $RIVALS:$peer in -:tidelog* | -:raw | -:blocking | -:glommio | -:tokio-uring) ;; -:*) continue ;; esac
      cell run "$peer" "${c%:*}" "${c#*:}"
    done
  done
done
rm -f "$DATA/floor.scratch"
