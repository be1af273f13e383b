"""Restart storm: kill -9 of a random node every 2 s. restarts.py PREFIX NET SECONDS"""

import sys
from rig import *

PFX, NET, SECS = sys.argv[1], sys.argv[2], int(sys.argv[3])


async def main():
    random.seed(9)
    cl = Cluster(PFX, f'{ROOT}/data/restarts', net=NET, partitions=4)
    cl.start_all()
    await cl.leader()
    h = History()
    ld = Load(cl, h, 2, 1, 1, 1, False, rate=50, link_timeout=0.7)
    await asyncio.sleep(2)
    T = now()
    n = 0
    ready = []
    kl = 0
    while now() - T < SECS:
        i = random.randrange(3)
        t = now()
        cl.kill(i)
        n += 1
        cl.start(i, False)
        await asyncio.sleep(max(0, 2 - (now() - t)))
        ready.append(cl.procs[i].ready - t if cl.procs[i].ready else None)
        for j in range(3):
            if cl.procs[j].poll() is not None:
                print('node', j + 1, 'exited', cl.procs[j].returncode, cl.tail(j))
                cl.start(j, False)
    t = now()
    n0 = {p: len(h.acks[p]) for p in range(4)}
    while not all(len(h.acks[p]) > n0[p] + 10 for p in range(4)) and now() - t < 60:
        await asyncio.sleep(0.02)
    print(
        f'{n} kills; ready after kill p50 {pct([r for r in ready if r],.5):.2f} max {max(r for r in ready if r):.2f} s, not ready within 2 s {sum(1 for r in ready if r is None)}; all partitions ack {now()-t:.2f} s after the last',
        flush=True,
    )
    for p in range(4):
        a = sorted(h.acks[p])
        g = sorted((y - x for x, y in zip(a, a[1:]) if x > T), reverse=True)
        av = 1 - sum(x for x in g if x > 0.3) / SECS
        print(f'  p{p} acks {len(a)} longest gaps {[round(x,2) for x in g[:4]]} time without gaps > 0.3 s: {av:.0%}')
    await asyncio.sleep(2)
    await ld.finish()
    await check(cl, h, 'storm')
    cl.close()


asyncio.run(main())
