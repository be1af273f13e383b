#!/bin/bash
# One durable batch after the other, by its size: fio, the raw baseline, Tidelog, in turns, one JSON line a cell.
#
#   ladder.sh TIDELOG DATA ROUNDS >> ladder.jsonl
#
# A batch has 128 bytes of header, 64 for each record's, and a footer of 64 and 40 for each run of records in it and in the batch
# before: a payload 384 bytes below the batch's size fills it, one page less from 64 KiB on, where a payload starts on a page of its
# own. So each line of a cell is one durable write of the same size after the other, and their `rps` compare:
#
#   medians.py --base fio ladder.jsonl
set -u
TIDELOG=$1 DATA=$2 ROUNDS=${3:-5}
. "$(dirname "$0")/quiet.sh"
SIZES=${SIZES:-"4096 16384 65536 1048576"}
S=${S:-1.0} W=${W:-0.2} SEGMENT=${SEGMENT:-2GiB}
mkdir -p "$DATA"
payload_of() { # size
  echo $(($1 - 384 - ($1 > 65536 ? 4096 : 0)))
}
fio_append() { # size
  fio --name=append --filename="$DATA/fio.scratch" --ioengine=io_uring --direct=1 --overwrite=1 --size=512m --rw=write --bs="$1" \
    --iodepth=1 --fdatasync=1 --time_based --runtime="$S" --output-format=json 2> /dev/null | python3 -c "
import json, sys
w = json.load(sys.stdin)['jobs'][0]['write']
print(json.dumps(dict(peer='fio', payload=$(payload_of "$1"), writers=1, rps=w['iops'], mbps=w['bw_bytes'] / 1e6, disk_amp=1.0)))"
}
ours() { # label size flags...
  local label=$1 size=$2
  shift 2
  timeout 60 "$TIDELOG" bench append --label "$label" --payload "$(payload_of "$size")" --closed 1 --seconds "$S" --warmup "$W" --rounds 1 \
    --dir "$DATA" --no-device --peers "$@"
}
for round in $(seq "$ROUNDS"); do
  for size in $SIZES; do
    command -v fio > /dev/null && cell fio_append "$size"
    for sync in dsync fdatasync; do
      cell ours "raw-$sync" "$size" --baseline raw --sync "$sync"
      cell ours "tidelog-$sync" "$size" --sync "$sync" --inline --segment-size "$SEGMENT"
    done
  done
done
rm -f "$DATA/fio.scratch"
