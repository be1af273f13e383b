"""N connections ask for the whole log again and again, 3 MiB an answer, and do (drain) or do not (noread) read the answers. Does the leader keep leading?
reads.py PREFIX NET N drain|noread SECONDS ROUNDS; and burst of connects."""

import sys, socket
from rig import *

PFX, NET, N, MODE, SECS, R = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], int(sys.argv[5]), int(sys.argv[6])


async def main():
    cl = Cluster(PFX, f'{ROOT}/data/reads', net=NET)
    cl.start_all()
    L = await cl.leader()
    a = cl.addrs[L]
    c = await Conn.open(*a)
    await asyncio.gather(*[c.append(0, b'z' * (1 << 20)) for k in range(8)])
    for k in range(7):
        await asyncio.gather(*[c.append(0, b'z' * (1 << 20)) for k in range(8)])
    c.close()
    lat = []
    stop = False

    async def honest():
        c = Client(cl.addrs, 3)
        while not stop:
            t = now()
            r = await c.append(0, b'h' * 100, 10)
            lat.append((t, now() - t, r[0]))
            await asyncio.sleep(0.02)

    for _ in range(3):
        asyncio.ensure_future(honest())
    await asyncio.sleep(4)
    for rd in range(R):
        L = await cl.leader()
        a = cl.addrs[L]
        g0 = (await cl.statuses())[L]['partitions'][0]['generation']
        t0 = now()
        ss = []
        base = [x[1] * 1e3 for x in lat if x[0] > t0 - 4]
        blob = frame(16) + b''.join(frame(34, (j, 0, 1, 0, 3 << 20)) for j in range(500))
        got = 0
        peak = 0
        for k in range(N):
            s = socket.socket()
            s.connect(a)
            s.setblocking(False)
            ss.append([s, blob])
        while now() - t0 < SECS:
            for x in ss:
                try:
                    n = x[0].send(x[1])
                    x[1] = x[1][n:]
                except OSError:
                    pass
                if MODE == 'drain':
                    try:
                        got += len(x[0].recv(1 << 20))
                    except OSError:
                        pass
            peak = max(peak, cl.rss(L))
            await asyncio.sleep(0.01)
        for x in ss:
            x[0].close()
        l = [x[1] * 1e3 for x in lat if x[0] >= t0]
        log = open(f'{cl.root}/n{L+1}.log').read()
        late = [int(m) for m in __import__('re').findall(r'late_ms=(\d+)', log)]
        await asyncio.sleep(3)
        g1 = max(s['partitions'][0]['generation'] for s in await cl.statuses() if s)
        print(
            f'{MODE} {N} connections, {N*len(blob)/1e6:.1f} MB asked, {got/1e6:.0f} MB read: generation {g0} -> {g1}, leader RSS peak {peak} MiB, its pauses ms {late[-8:]}, honest p50 {pct(base,.5):.1f} -> {pct(l,.5) or -1:.1f} p99 {pct(base,.99):.0f} -> {pct(l,.99) or -1:.0f} max {max(l, default=0):.0f} ms, outcomes {dict(collections.Counter(x[2] for x in lat if x[0] >= t0))}',
            flush=True,
        )
    # burst of honest connects
    L = await cl.leader()
    a = cl.addrs[L]
    ok = collections.Counter()

    async def one():
        try:
            c = await Conn.open(*a, timeout=5)
            ok['greeted'] += 1
            c.close()
        except Exception as e:
            ok[type(e).__name__ + ' ' + str(e)[:40]] += 1

    await asyncio.gather(*[one() for _ in range(600)])
    print('600 honest connects at once:', dict(ok))
    stop = True
    await asyncio.sleep(0.2)
    cl.close(False)


asyncio.run(main())
