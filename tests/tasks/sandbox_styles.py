"""A program in many styles, which tests in many styles are written for."""

PROGRAM = r"""
from dataclasses import dataclass, field
from enum import Enum, IntEnum, Flag, auto
from collections import namedtuple, defaultdict, OrderedDict, Counter, deque
from typing import NamedTuple, List, Optional
import abc, functools, contextlib, copy, itertools, asyncio, heapq, math

@dataclass
class P2:
    x: int
    y: int = 0
    tags: list = field(default_factory=list)
    def norm(self): return abs(self.x) + abs(self.y)
@dataclass(frozen=True, order=True)
class V:
    a: int
    b: str = 'x'
class Colour(Enum):
    RED = 1
    GREEN = 2
class Level(IntEnum):
    LOW = 1
    HIGH = 2
class Perm(Flag):
    R = auto()
    W = auto()
class NT(NamedTuple):
    x: int
    y: int = 3
Pt = namedtuple('Pt', 'x y')
class Animal:
    kingdom = 'animalia'
    count = 0
    def __init__(self, name): self.name = name; type(self).count += 1
    def speak(self): raise NotImplementedError
    def __repr__(self): return f'{type(self).__name__}({self.name!r})'
    @property
    def upper(self): return self.name.upper()
    @classmethod
    def make(cls, n): return cls(n)
    @staticmethod
    def two(): return 2
class Dog(Animal):
    def speak(self): return 'wuff'
class Shape(abc.ABC):
    @abc.abstractmethod
    def area(self): ...
class Sq(Shape):
    def __init__(self, s): self.s = s
    def area(self): return self.s ** 2
class Funds(Exception):
    def __init__(self, need, have):
        super().__init__(f'need {need}, have {have}')
        self.need, self.have = need, have
class Sub(Funds): pass
class Words(Exception):
    def __str__(self): return 'own words'
class Money(ValueError, KeyError): pass
class ML(list):
    def total(self): return sum(self)
class MD(dict):
    def __missing__(self, k): return k * 2
class MI(int): pass
class MS(str): pass
def deffed(words):
    d = defaultdict(int)
    for w in words: d[w] += 1
    return d
def grouped(ws):
    d = defaultdict(list)
    for w in ws: d[len(w)].append(w)
    return d
def withdraw(b, a):
    if a > b: raise Funds(a, b)
    return b - a
def sub(): raise Sub(1, 2)
def words(): raise Words()
def money(): raise Money('m')
def group(): raise ExceptionGroup('g', [ValueError('a'), TypeError('b')])
def chained():
    try: 1 / 0
    except ZeroDivisionError as e: raise ValueError('c') from e
def decode(): return b'\xff'.decode()
def openit(): return open('/nowhere/x')
def noneerr(): raise ValueError(None)
def tuplerr(): raise ValueError((1, 2), [3])
def stop(): raise StopIteration(5)
def exits(): raise SystemExit(3)
def memo(f):
    @functools.wraps(f)
    def g(*a):
        g.calls += 1
        return f(*a)
    g.calls = 0
    return g
@memo
def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
@functools.lru_cache(None)
def cfib(n): return n if n < 2 else cfib(n - 1) + cfib(n - 2)
def adder(n): return lambda x: x + n
def counter():
    n = 0
    def inc():
        nonlocal n
        n += 1
        return n
    return inc
@contextlib.contextmanager
def cm(log):
    log.append('in')
    try: yield 7
    finally: log.append('out')
class Supp:
    def __enter__(self): return self
    def __exit__(self, t, v, tb): self.seen = t is not None; return t is not None and issubclass(t, ValueError)
def gen(n):
    for i in range(n):
        got = yield i
        if got: yield got * 10
def mapped(xs): return map(lambda x: x * 2, xs)
def filt(xs): return filter(None, xs)
def zipped(a, b): return zip(a, b)
def rev(xs): return reversed(xs)
def enum_(xs): return enumerate(xs)
def keys(d): return d.keys()
def vals(d): return d.values()
def its(d): return d.items()
def deep(n): return 0 if n == 0 else 1 + deep(n - 1)
def nest(n):
    x = []
    for _ in range(n): x = [x]
    return x
def big(): return 10 ** 3000
def mutate(m):
    for row in m:
        for i in range(len(row)): row[i] *= 2
    m.append([1])
def rotate(m): m[:] = [list(r) for r in zip(*m[::-1])]
def setnode(node, v): node.val = v; return node
class Node:
    def __init__(self, val, next=None): self.val = val; self.next = next
def tolist(node):
    out = []
    while node: out.append(node.val); node = node.next
    return out
def fromlist(xs):
    h = None
    for x in reversed(xs): h = Node(x, h)
    return h
def revlist(h):
    p = None
    while h: h.next, p, h = p, h, h.next
    return p
def dflt(x, acc=[]): acc.append(x); return acc
def kwonly(a, *, b, c=3): return a, b, c
def var(*args, **kw): return args, kw
def pos(a, b, /): return a - b
def sortby(xs, key=None, reverse=False): return sorted(xs, key=key, reverse=reverse)
def ident(x): return x
def isin(x, t): return isinstance(x, t)
def typ(x): return type(x)
def nan(): return float('nan')
def negz(): return -0.0
async def aadd(a, b):
    await asyncio.sleep(0)
    return a + b
async def agen(n):
    for i in range(n): yield i
class It:
    def __init__(self, n): self.n = n; self.i = 0
    def __iter__(self): return self
    def __next__(self):
        if self.i >= self.n: raise StopIteration
        self.i += 1
        return self.i
class Call:
    def __call__(self, x): return x + 1
class Cmp:
    def __init__(self, v): self.v = v
    def __eq__(self, o): return isinstance(o, Cmp) and self.v == o.v
    def __lt__(self, o): return self.v < o.v
    def __hash__(self): return hash(self.v)
class Vec:
    def __init__(self, *c): self.c = c
    def __add__(s, o): return Vec(*[a + b for a, b in zip(s.c, o.c)])
    def __mul__(s, k): return Vec(*[a * k for a in s.c])
    __rmul__ = __mul__
    def __neg__(s): return s * -1
    def __eq__(s, o): return s.c == o.c
    def __getitem__(s, i): return s.c[i]
    def __len__(s): return len(s.c)
    def __iadd__(s, o): s.c = tuple(a + b for a, b in zip(s.c, o.c)); return s
    def __matmul__(s, o): return sum(a * b for a, b in zip(s.c, o.c))
    def __bool__(s): return any(s.c)
    def __abs__(s): return math.hypot(*s.c)
    def __contains__(s, v): return v in s.c
    def __format__(s, spec): return 'V' + spec
class Desc:
    def __set_name__(self, o, n): self.n = '_' + n
    def __get__(self, i, o): return self if i is None else getattr(i, self.n, None)
    def __set__(self, i, v):
        if v < 0: raise ValueError('neg')
        setattr(i, self.n, v)
class Acc:
    bal = Desc()
    __slots__ = ('_bal', 'hist')
GLOBAL = {'a': [1]}
LST = [1, 2]
def addg(x): GLOBAL['a'].append(x); LST.append(x)
def getg(): return GLOBAL
def callback(f, n): return [f(i) for i in range(n)]
def usecls(c): return c(3).double()
def usemeth(o): return o.name + o.hello('x')
def stable(x): return x
def inputs(): return input()
def printy(x): print('a', x, sep='-', end='!')
def bits(x): return bytes([x]), bytearray([x]), memoryview(b'ab')
def cplx(): return complex(1, 2)
def sl(): return slice(1, 2)
def el(): return ...
def ni(): return NotImplemented
def setof(): return {(1, 2), (3, 4)}
def fset(): return frozenset([frozenset([1])])
def dkeys(): return {(1, 2): 'a', None: 'b', 3.5: 'c', True: 'd'}
def selfref():
    a = [1]; a.append(a); return a
def alias():
    a = []; return [a, a]
def fltol(x): return x / 3
class Meta(type):
    def __call__(cls, *a): return 'meta'
class WithMeta(metaclass=Meta): pass
class Single:
    _i = None
    def __new__(cls):
        if cls._i is None: cls._i = super().__new__(cls)
        return cls._i
class Tree:
    def __init__(self, v): self.v = v; self.l = self.r = None
    def insert(self, v):
        side = 'l' if v < self.v else 'r'
        child = getattr(self, side)
        if child: child.insert(v)
        else: setattr(self, side, Tree(v))
    def walk(self):
        if self.l: yield from self.l.walk()
        yield self.v
        if self.r: yield from self.r.walk()
"""
