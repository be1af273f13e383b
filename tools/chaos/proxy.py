"""A TCP proxy between the CLI's client and the nodes. It rewrites the node addresses of ServerHello and of not-leader answers is not needed:
the proxies listen on the nodes' own addresses inside the client's namespace (DNAT by nft would need conntrack), so here the nodes listen on
127.0.0.x of one namespace and the CLI gets the proxies' addresses; hints are rewritten on the way.
proxy.py MODE(drop3|reset|delay2|mix) SESSION(0|1) RECORDS SEED"""

import sys
from rig import *
import socket

MODE, SESS, N, SEED = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
rng = random.Random(SEED)
stat = collections.Counter()


class C2(Cluster):
    def __init__(self, root, ports, pports):
        self.prefix = None
        super().__init__('x', root)
        self.pports = pports
        self.addrs = [('127.0.0.1', p) for p in ports]
        mem = ',\n'.join(f'{{ id = {i+1}, address = "127.0.0.1:{p}" }}' for i, p in enumerate(ports))
        for i in range(3):
            open(f'{root}/n{i+1}.toml', 'w').write(
                f'profile = ["laptop","balanced"]\n[node]\nid = {i+1}\ndata_dir = "{root}/n{i+1}"\n[cluster]\nname = "jepsen"\nnodes = [\n{mem}\n]\npartitions = 1\nreplication = 3\n'
            )

    def start(self, i, wait=True, timeout=60):
        p = subprocess.Popen(
            [BIN, 'serve', '--config', f'{self.root}/n{i+1}.toml'],
            stdout=subprocess.PIPE,
            stderr=open(f'{self.root}/n{i+1}.log', 'a'),
            text=True,
        )
        self.procs[i] = p
        p.ready = None

        def rd():
            for l in p.stdout:
                if 'ready' in l:
                    p.ready = now()

        threading.Thread(target=rd, daemon=True).start()


def free(n):
    ss = [socket.socket() for _ in range(n)]
    [s.bind(('127.0.0.1', 0)) for s in ss]
    ps = [s.getsockname()[1] for s in ss]
    [s.close() for s in ss]
    return ps


async def main():
    ports, pports = free(3), free(3)
    cl = C2(f'{ROOT}/data/proxy-{MODE}-{SESS}', ports, pports)
    cl.start_all()
    await cl.leader()
    mapping = {f'127.0.0.1:{p}'.encode(): f'127.0.0.1:{q}'.encode() for p, q in zip(ports, pports)}
    n = [0]

    async def handle(r, w, target):
        r2, w2 = await asyncio.open_connection('127.0.0.1', target)
        stat['conns'] += 1

        async def fwd():
            try:
                while True:
                    d = await r.read(65536)
                    if not d:
                        break
                    if MODE in ('reset', 'mix') and rng.random() < 0.03:
                        k = rng.randrange(len(d))
                        w2.write(d[:k])
                        await w2.drain()
                        stat['reset in request'] += 1
                        for x in (w, w2):
                            x.transport.abort()
                        return
                    w2.write(d)
                    await w2.drain()
            except Exception:
                pass
            w2.close()

        async def back():
            try:
                while True:
                    h = await r2.readexactly(64)
                    kind, ml, pl, f = parse_header(h)
                    m = await r2.readexactly((ml + 63) // 64 * 64) if ml else b''
                    pay = await r2.readexactly((pl + 63) // 64 * 64) if pl else b''
                    out = h + m + pay
                    if kind == 17:
                        mm = m[:ml]
                        for a, b in mapping.items():
                            mm = mm.replace(len(a).to_bytes(4, 'little') + a, len(b).to_bytes(4, 'little') + b)
                        out = frame(17, f, mm)
                    if kind == 48:
                        # split into single answers; not-leader hints rewritten; every third dropped
                        o = b''
                        p = 0
                        while p < ml:
                            req, code, x, a, b = struct.unpack_from('<QB3xIQQ', m, p)
                            ex = m[p + 32 : p + 32 + x]
                            p += 32 + (x + 7) // 8 * 8
                            if code == 16:
                                ex = mapping.get(ex, ex)
                            n[0] += 1
                            if MODE in ('drop3', 'mix') and n[0] % 3 == 0:
                                stat['replies dropped'] += 1
                                continue
                            o += struct.pack('<QB3xIQQ', req, code, len(ex), a, b) + ex + b'\0' * (-len(ex) % 8)
                        if not o:
                            continue
                        out = frame(48, (0,) * 5, o)
                    if MODE == 'delay2' or (MODE == 'mix' and rng.random() < 0.02):
                        stat['delayed'] += 1
                        await asyncio.sleep(2)
                    if MODE in ('reset', 'mix') and kind == 48 and rng.random() < 0.05:
                        w.write(out[: rng.randrange(1, len(out))])
                        await w.drain()
                        stat['reset in reply'] += 1
                        for x in (w, w2):
                            x.transport.abort()
                        return
                    w.write(out)
                    await w.drain()
            except Exception:
                pass
            w.close()

        await asyncio.gather(fwd(), back())

    for q, p in zip(pports, ports):
        await asyncio.start_server(lambda r, w, p=p: handle(r, w, p), '127.0.0.1', q)
    recs = [f'rec{k}-{SEED}' for k in range(1, N + 1)]
    args = [
        BIN,
        'append',
        '--cluster',
        ','.join(f'127.0.0.1:{q}' for q in pports),
        '--output',
        'json',
        '--in-flight',
        '32',
        '--timeout',
        '3s',
    ] + (['--session', 's1', '--first-sequence', '1'] if SESS else [])
    t = now()
    runs = 0
    outs = {}
    first = 1
    while True:
        runs += 1
        a = list(args)
        if SESS:
            a[a.index('--first-sequence') + 1] = str(first)
        p = await asyncio.create_subprocess_exec(
            *a, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        try:
            o, e = await asyncio.wait_for(p.communicate('\n'.join(recs[first - 1 :]).encode() + b'\n'), 240)
        except asyncio.TimeoutError:
            p.kill()
            print('CLI did not end in 240 s')
            break
        for l in o.decode().splitlines():
            j = json.loads(l)
            outs[j['sequence']] = j
        bad = [s for s in range(1, N + 1) if outs.get(s, {}).get('outcome') != 'acked']
        if not SESS or not bad or runs > 12:
            break
        first = bad[0]
    print(
        f'{MODE} session={SESS}: outcomes {dict(collections.Counter(j["outcome"] for j in outs.values()))} of {N}, CLI runs {runs} rc {p.returncode} in {now()-t:.1f} s {dict(stat)} {e.decode()[-200:]}'
    )
    errs = collections.Counter(
        (
            j['outcome'],
            j.get('error', '')[:110].replace(str(pports[0]), 'P').replace(str(pports[1]), 'P').replace(str(pports[2]), 'P'),
        )
        for j in outs.values()
        if j['outcome'] != 'acked'
    )
    print('   ', errs.most_common(4))
    log, hw = await final_log(cl, 0)
    c = collections.Counter(v[2].decode() for v in log.values() if v[0] == 2)
    dup = [r for r in c if c[r] > 1]
    lost = [
        s for s, j in outs.items() if j['outcome'] == 'acked' and (log.get(j['index'], (0, 0, b''))[2].decode() != recs[s - 1])
    ]
    wrong = [s for s, j in outs.items() if j['outcome'] == 'refused' and recs[s - 1] in c]
    unk = [s for s, j in outs.items() if j['outcome'] == 'unknown']
    print(
        f'    in the log: {sum(c.values())} distinct {len(c)} doubled {len(dup)} acked-but-not-there {len(lost)} refused-but-there {len(wrong)} {wrong[:5]} unknown {len(unk)} (there: {sum(1 for s in unk if recs[s-1] in c)}) in order {[v[2] for k, v in sorted(log.items()) if v[0]==2] == [r.encode() for r in recs]}',
        flush=True,
    )
    cl.close(False)


asyncio.run(main())
