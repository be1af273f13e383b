"""Does the checker see what it must? Tampers with a good history."""

import sys
from rig import *
import copy


async def main():
    cl = Cluster('ta', f'{ROOT}/data/self')
    cl.start_all()
    await cl.leader()
    h = History()
    ld = Load(cl, h, 3, 1, 2, 1, True, rate=40)
    await asyncio.sleep(4)
    await ld.finish()
    await check(cl, h, 'untouched')

    def t(label, f):
        g = History()
        g.appends = list(h.appends)
        g.reads = list(h.reads)
        f(g)
        return label, g

    ai = next(i for i, a in enumerate(h.appends) if a[5] == 'acked' and i > 100)
    lin = [i for i, r in enumerate(h.reads) if r[5] == 'lin'][50]

    def lost(g):
        a = list(g.appends[ai])
        a[2] = b'never'
        g.appends[ai] = tuple(a)

    def stale(g):
        r = list(g.reads[lin])
        r[3] -= 40
        g.reads[lin] = tuple(r)

    def rt(g):
        a = list(g.appends[ai])
        a[3] += 3
        a[4] += 3
        g.appends[ai] = tuple(a)

    def future(g):
        r = list(g.reads[lin])
        r[3] += 60
        g.reads[lin] = tuple(r)

    def twice(g):
        a = list(g.appends[ai + 1])
        b = g.appends[ai]
        a[5:8] = b[5:8]
        g.appends[ai + 1] = tuple(a)

    for l, g in (t('lost', lost), t('stale', stale), t('realtime', rt), t('future', future), t('twice', twice)):
        bad, _, _ = await check(cl, g, 'tampered: ' + l)
        print('   SEEN' if bad else '   NOT SEEN', l)
    cl.close(False)


asyncio.run(main())
