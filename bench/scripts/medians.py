#!/usr/bin/env python3
"""Medians per cell of the lines that the scripts beside this one print.

medians.py [--base NAME] [--max-other 0.45] FILE...

Lines taken while others kept more cores busy than --max-other are left out; where there is no other, the quietest is taken and
marked '*'. With --base, each cell's throughput is also given as a multiple of that peer's."""
import collections
import json
import statistics
import sys

base, limit, files = None, 0.45, []
arguments = iter(sys.argv[1:])
for argument in arguments:
    if argument == '--base':
        base = next(arguments)
    elif argument == '--max-other':
        limit = float(next(arguments))
    else:
        files.append(argument)
if not files:
    sys.exit(__doc__)

cells = collections.defaultdict(list)
for name in files:
    with open(name) as lines:
        for line in lines:
            try:
                cell = json.loads(line)
                cells[cell['payload'], cell['writers'], cell['peer']].append(cell)
            except (ValueError, KeyError, TypeError):
                continue


def median(group, field):
    values = [cell[field] for cell in group if cell.get(field) is not None]
    return statistics.median(values) if values else float('nan')


rows = {}
for key, group in sorted(cells.items()):
    quiet = [cell for cell in group if cell.get('other_cpu', 0) < limit]
    mark = '' if quiet else '*'
    rows[key] = (quiet or [min(group, key=lambda cell: cell['other_cpu'])], mark)
print(f"{'payload':>7} {'W':>5} {'peer':22} {'n':>3} {'rec/s':>9} {'MB/s':>8} {'disk MB/s':>9} {'p50 µs':>8} {'p99 µs':>8} "
      f"{'p99.9':>8} {'cpu µs':>7} {'srv µs':>7} {'amp':>5} {'rec/batch':>9} {'errors':>6} {'× ' + base if base else ''}")
last = None
for (payload, writers, peer), (group, mark) in rows.items():
    if last not in (None, (payload, writers)):
        print()
    last = payload, writers
    rate = median(group, 'rps')
    servers = [cell['cpu_server_s'] / cell['recs'] * 1e6 for cell in group if cell.get('recs') and 'cpu_server_s' in cell]
    against = rows.get((payload, writers, base))
    times = f"{rate / median(against[0], 'rps'):.2f}" if against else ''
    print(f"{payload:7} {writers:5} {peer + mark:22} {len(group):3} {rate:9.0f} {median(group, 'mbps'):8.1f} "
          f"{median(group, 'mbps') * median(group, 'disk_amp'):9.1f} {median(group, 'p50_us'):8.0f} {median(group, 'p99_us'):8.0f} "
          f"{median(group, 'p999_us'):8.0f} {median(group, 'cpu_s_per_m'):7.2f} {statistics.median(servers) if servers else 0:7.2f} "
          f"{median(group, 'disk_amp'):5.2f} {median(group, 'recs_per_batch'):9.1f} {median(group, 'errors'):6.0f} {times}")
