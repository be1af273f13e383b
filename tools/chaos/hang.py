"""The disk of one node stalls without an error (fsfreeze of its own loop-mounted ext4). hang.py PREFIX NET leader|follower|two SECONDS [backend] [kbytes_per_s]"""

import sys
from rig import *

PFX, NET, WHO, SECS = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
BE = sys.argv[5] if len(sys.argv) > 5 else 'uring'
RATE = int(sys.argv[6]) if len(sys.argv) > 6 else 0


async def main():
    for i in (1, 2, 3):
        shutil.rmtree(f'{ROOT}/mnt/{i}/d', True)
    cl = Cluster(
        PFX,
        f'{ROOT}/data/hang',
        net=NET,
        dirs=[f'{ROOT}/mnt/{i}/d' for i in (1, 2, 3)],
        extra=f'[io]\nbackend="{BE}"\n',
    )
    cl.start_all()
    L = await cl.leader()
    h = History()
    ld = Load(cl, h, 3, 1, 2, 1, True, rate=40, link_timeout=0.7, size=100)
    stop = False
    bulk = collections.Counter()

    async def blk():
        c = Client(cl.addrs, 3)
        q = set()

        async def one():
            pay = h.payload('bulk', 32768)
            inv = now()
            r = await c.append(0, pay, 60)
            ld.note(0, 'bulk', pay, inv, r)
            bulk[r[0]] += 1

        while not stop:
            if len(q) < 200:
                t = asyncio.ensure_future(one())
                q.add(t)
                t.add_done_callback(q.discard)
            await asyncio.sleep(32.768 / RATE)
        await asyncio.sleep(0.1)

    if RATE:
        asyncio.ensure_future(blk())
    await asyncio.sleep(4)
    who = {'leader': [L], 'follower': [(L + 1) % 3], 'two': [L, (L + 1) % 3]}[WHO]
    rss0 = [cl.rss(i) for i in range(3)]
    t0 = now()
    for i in who:
        sh(f'fsfreeze -f {ROOT}/mnt/{i+1}')
    frozen = True
    try:
        while now() - t0 < SECS:
            await asyncio.sleep(5)
            st = await cl.statuses(0.5)
            a = [t for t in h.acks[0] if t > now() - 5]
            print(
                f'  {now()-t0:4.1f} s frozen {[i+1 for i in who]}: acks in 5 s {len(a)}',
                [
                    (
                        (
                            s['partitions'][0]['role'][:4],
                            s['partitions'][0]['generation'],
                            s['partitions'][0]['high_water'],
                            s['partitions'][0]['durable'],
                        )
                        if s
                        else None
                    )
                    for s in st
                ],
                'RSS',
                [cl.rss(i) for i in range(3)],
                dict(bulk),
                flush=True,
            )
    finally:
        for i in who:
            sh(f'fsfreeze -u {ROOT}/mnt/{i+1}')
    t1 = now()
    await asyncio.sleep(6)
    g = gaps(h.acks[0], t0, t1)
    print(
        f'{WHO} {BE}: longest gap while frozen {g[0]:.2f} s, first ack after the freeze {g[1] if g[1] is None else round(g[1],2)}; first ack after the thaw {gaps(h.acks[0], t1, now())[1]}, longest after {gaps(h.acks[0], t1, now())[0]:.2f}; RSS {rss0} -> {[cl.rss(i) for i in range(3)]}',
        flush=True,
    )
    stop = True
    await ld.finish()
    await check(cl, h, 'hang ' + WHO)
    for i in range(3):
        print(
            '  ',
            i + 1,
            [l.strip()[:170] for l in open(f'{cl.root}/n{i+1}.log') if 'stall' in l or 'slow' in l or 'role' in l][-4:],
        )
    cl.close()


asyncio.run(main())
