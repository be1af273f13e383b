"""SIGSTOP of the leader, of two, of all. stops.py PREFIX NET ROUNDS"""

import sys
from rig import *

PFX, NET, ROUNDS = sys.argv[1], sys.argv[2], int(sys.argv[3])


async def main():
    random.seed(8)
    cl = Cluster(PFX, f'{ROOT}/data/stops', net=NET)
    cl.start_all()
    await cl.leader()
    h = History()
    ld = Load(cl, h, 3, 2, 2, 1, True, rate=40, link_timeout=0.7)
    await asyncio.sleep(2)
    FO, BACK = {1.5: [], 5: []}, []
    for k in range(ROUNDS):
        L = await cl.leader()
        d = 1.5 if k % 2 else 5
        await asyncio.sleep(random.uniform(0, 1))
        t0 = now()
        cl.stop(L)
        await asyncio.sleep(d)
        cl.cont(L)
        t1 = now()
        await asyncio.sleep(2)
        a = [t for t in h.acks[0] if t > t0 + 0.03]
        # the leader's own answers just before the stop may come in for some ms
        pts = [t0] + [t for t in h.acks[0] if t0 < t < t0 + d]
        g = max((y - x for x, y in zip(pts, pts[1:])), default=d)
        FO[d].append(g)
        BACK.append(gaps(h.acks[0], t1, now())[0])
    for d in FO:
        print(
            f'stop leader {d} s x{len(FO[d])}: gap p50 {pct(FO[d],.5):.2f} max {max(FO[d]):.2f}  all {[round(x,2) for x in sorted(FO[d])]}',
            flush=True,
        )
    print(f'gap after CONT: p50 {pct(BACK,.5):.2f} max {max(BACK):.2f}', flush=True)
    G = []
    for k in range(6):
        i, j = random.sample(range(3), 2)
        cl.stop(i)
        cl.stop(j)
        await asyncio.sleep(3)
        t1 = now()
        cl.cont(i)
        await asyncio.sleep(random.choice([0, 0, 2]))
        cl.cont(j)
        await asyncio.sleep(3)
        G.append(gaps(h.acks[0], t1, now())[1])
    print('two stopped 3 s x6: first ack after CONT', [round(x, 2) if x else x for x in G], flush=True)
    for i in range(3):
        cl.stop(i)
    await asyncio.sleep(30)
    t1 = now()
    for i in range(3):
        cl.cont(i)
    await asyncio.sleep(4)
    print('all stopped 30 s: first ack after CONT', round(gaps(h.acks[0], t1, now())[1] or -1, 2), flush=True)
    await ld.finish()
    await check(cl, h, 'stops')
    print('pinned refusals', h.noread)
    cl.close()


asyncio.run(main())
