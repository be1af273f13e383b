"""One-way cuts, bridges, isolation, flapping, under load. cuts.py PREFIX NET ROUNDS"""

import sys
from rig import *

PFX, NET, ROUNDS = sys.argv[1], sys.argv[2], int(sys.argv[3])


async def gen(cl):
    return max((s['partitions'][0]['generation'] for s in await cl.statuses(1) if s), default=0)


async def main():
    random.seed(7)
    for name in [
        'leader_deaf',
        'leader_mute',
        'leader_isolated',
        'bridge_leader_f1',
        'f1_deaf_to_leader',
        'f1_mute',
        'f1_isolated',
        'flap_leader_in',
        'flap_f1',
        'flap_random',
    ]:
        cl = Cluster(PFX, f'{ROOT}/data/cuts', net=NET)
        cl.start_all()
        await cl.leader()
        h = History()
        ld = Load(cl, h, 3, 2, 2, 1, True, rate=40, link_timeout=0.7)
        await asyncio.sleep(2)
        G, FIRST, AFTER, dg = [], [], [], []
        for k in range(ROUNDS if not name.startswith('flap') else 1):
            L = await cl.leader()
            F = [i for i in range(3) if i != L]
            random.shuffle(F)
            g0 = await gen(cl)
            t0 = now()
            hold = 6 if not name.startswith('flap') else 20
            if name == 'leader_deaf':
                cl.cut(F[0], L)
                cl.cut(F[1], L)
            elif name == 'leader_mute':
                cl.cut(L, F[0])
                cl.cut(L, F[1])
            elif name == 'leader_isolated':
                [cl.cut(*x) for x in ((L, F[0]), (L, F[1]), (F[0], L), (F[1], L))]
            elif name == 'bridge_leader_f1':
                cl.cut(L, F[0])
                cl.cut(F[0], L)
            elif name == 'f1_deaf_to_leader':
                cl.cut(L, F[0])
            elif name == 'f1_mute':
                cl.cut(F[0], L)
                cl.cut(F[0], F[1])
            elif name == 'f1_isolated':
                [cl.cut(*x) for x in ((L, F[0]), (F[1], F[0]), (F[0], L), (F[0], F[1]))]
            if name.startswith('flap'):
                while now() - t0 < hold:
                    if name == 'flap_leader_in':
                        L = await cl.leader(timeout=0.1) if False else L
                        cl.cut(F[0], L)
                        cl.cut(F[1], L)
                    elif name == 'flap_f1':
                        cl.cut(L, F[0])
                        cl.cut(F[0], F[1])
                    else:
                        a, b = random.sample(range(3), 2)
                        cl.cut(a, b)
                    await asyncio.sleep(0.2)
                    cl.heal()
                    await asyncio.sleep(0.2)
            else:
                await asyncio.sleep(hold)
            t1 = now()
            cl.heal()
            await asyncio.sleep(3)
            t2 = now()
            g, f = gaps(h.acks[0], t0, t1)
            G.append(g)
            FIRST.append(f)
            AFTER.append(gaps(h.acks[0], t1, t2)[0])
            dg.append(await gen(cl) - g0)
        await ld.finish()
        print(
            f'{name}: longest gap during cut s {[round(x,2) for x in G]}; after heal {[round(x,2) for x in AFTER]}; generations gained {dg}',
            flush=True,
        )
        await check(cl, h, name)
        cl.close()


asyncio.run(main())
