"""A test works with a program's objects as if they were its own, though they live elsewhere."""

import json
import os
import socket
import threading

import pytest

from qsweep.tasks.sandbox import Limits, run_program
from qsweep.tasks.sandbox.inside.wire import Channel, Disconnected, decode, encode

PROGRAM = """
import collections, math
from collections import namedtuple
from enum import Enum

LIMIT = 10
calls = 0
Point = namedtuple('Point', 'x y')

class TooMuch(ValueError):
    pass

class Colour(Enum):
    RED = 1

class Stack:
    size = 0
    def __init__(self, items=()):
        self.items = list(items)
    def push(self, item):
        self.items.append(item)
        return self
    def pop(self): return self.items.pop()
    def __len__(self): return len(self.items)
    def __contains__(self, item): return item in self.items
    def __iter__(self): return iter(self.items)
    def __getitem__(self, i): return self.items[i]
    def __eq__(self, other): return isinstance(other, Stack) and self.items == other.items
    def __add__(self, other): return Stack(self.items + other.items)
    def __radd__(self, other): return Stack([other] + self.items)
    def __enter__(self): return self
    def __exit__(self, *a): self.items.clear()

class Deep(Stack):
    pass

def count():
    global calls
    calls += 1
    if calls > LIMIT: raise TooMuch('too much', calls)
    return calls

def numbers(n):
    for i in range(n): yield i * i

def sort_in_place(items): items.sort()
def fill(mapping, *, key='a'): mapping[key] = [1, {2}]
def apply(f, *xs): return [f(x) for x in xs]
def consume(iterator): return sum(iterator)
def shout(text): print(text.upper())
def everything():
    return [None, True, 1, -1, 1 << 80, 0.1, float('inf'), 1j, 'é\\ud800', b'\\x00', (1, (2,)), {3},
            frozenset({4}), {(1, 2): [5]}, range(1, 9, 2), bytearray(b'x'),
            collections.Counter('aab'), collections.deque([1])]
def same(x): return x
"""

TESTS = {
    "values": """
found = everything()
assert found == [None, True, 1, -1, 1 << 80, 0.1, float('inf'), 1j, 'é\\ud800', b'\\x00', (1, (2,)),
    {3}, frozenset({4}), {(1, 2): [5]}, range(1, 9, 2), bytearray(b'x'),
    __import__('collections').Counter('aab'), __import__('collections').deque([1])]
assert [type(x) for x in found[:4]] == [type(None), bool, int, int]
import math
assert math.isnan(same(float('nan')))
""",
    "names": "assert LIMIT == 10 and math.pi > 3\ntry: nowhere\nexcept NameError: pass\n"
    "else: raise SystemError\nassert sorted([2, 1]) == [1, 2]",
    "globals change": "assert calls == 0\ncount(); count()\nassert calls == 2",
    "classes": """
s = Stack([1])
assert s.push(2).push(3) == Stack([1, 2, 3]) and len(s) == 3 and 2 in s and list(s) == [1, 2, 3]
assert s[0] == 1 and s[-1] == 3 and s.pop() == 3 and s.items == [1, 2]
assert isinstance(s, Stack) and not isinstance(s, Deep) and isinstance(Deep(), Stack)
assert issubclass(Deep, Stack) and Stack.size == 0 and bool(s)
s.colour = 'red'
assert s.colour == 'red' and not hasattr(s, 'missing')
assert list(Stack([1]) + Stack([2])) == [1, 2] and list(0 + Stack([1])) == [0, 1]
with Stack([1]) as opened: assert len(opened) == 1
assert len(opened) == 0
assert s is s and s.push(9) == s and {s.pop(): 1}
""",
    "tuples and enums": """
p = Point(1, 2)
assert p.x == 1 and p == (1, 2) and tuple(p) == (1, 2) and Colour.RED.value == 1
assert Colour(1) == Colour.RED and {Point(1, 2): 3}[Point(1, 2)] == 3
""",
    "generators": "assert list(numbers(4)) == [0, 1, 4, 9]\ng = numbers(2)\nassert next(g) == 0\n"
    "assert next(g) == 1\ntry: next(g)\nexcept StopIteration: pass\nelse: raise SystemError",
    "arguments change": """
items = [3, 1, 2]
alias = items
sort_in_place(items)
assert alias == [1, 2, 3]
mapping = {}
fill(mapping)
fill(mapping, key='b')
assert mapping == {'a': [1, {2}], 'b': [1, {2}]}
""",
    "functions of the test": "assert apply(lambda x: x * 2, 1, 2) == [2, 4]\n"
    "assert consume(iter([1, 2])) == 3 and consume(x for x in (1, 2)) == 3\n"
    "assert apply(len, 'ab') == [2] and apply(count) == []\n"
    "def bad(x): raise KeyError(x)\n"
    "try: apply(bad, 'k')\nexcept KeyError as error: assert error.args == ('k',), error.args\n",
    "exceptions": """
for _ in range(10): count()
try: count()
except TooMuch as error: assert error.args == ('too much', 11) and isinstance(error, ValueError)
else: raise SystemError
try: same(1, 2)
except TypeError as error: assert 'positional' in str(error)
else: raise SystemError
""",
    "what is printed": """
import contextlib, io
with contextlib.redirect_stdout(io.StringIO()) as out: shout('hi')
assert out.getvalue() == 'HI\\n'
shout('seen')
""",
}


@pytest.mark.parametrize("what", TESTS)
def test_a_test_uses_the_program_as_if_it_stood_below_it(sandbox, what):
    together = {"__name__": "__main__"}
    exec(PROGRAM + TESTS[what], together)  # the same as one program
    outcome = run_program(sandbox, PROGRAM, Limits(), test=TESTS[what])
    assert outcome.passed, outcome
    assert ("SEEN" in outcome.output) == (what == "what is printed")


@pytest.mark.parametrize(
    ("test", "reason"),
    [
        ("assert count() == 2", "AssertionError"),
        ("assert numbers(2) == [0, 1]", "AssertionError"),
        ("raise TooMuch('x')", "TooMuch: x"),
        ("def broken(:", "SyntaxError"),
        ("undefined_name", "NameError"),
        ("import sys; sys.exit(0)", "SystemExit"),
        ("import os; os._exit(0)", "ended early"),
        ("while True: pass", "processor time"),
        ("x = bytearray(4 << 30)", "MemoryError"),
    ],
)
def test_a_test_that_does_not_come_to_its_end_fails(sandbox, test, reason):
    outcome = run_program(sandbox, PROGRAM, Limits(cpu_s=1, wall_s=10), test=test)
    assert not outcome.passed and reason in outcome.reason, outcome


def test_what_no_encoder_writes_is_refused():
    for message in ([], {"is": "nothing"}, {"is": "int", "of": "zz"}, {"is": "list", "of": 5},
                    {"is": "dict", "of": [[1]]}, {"is": "set", "of": [{"is": "list", "of": []}]},
                    {"is": "__import__", "of": "os"}, 1.5):  # fmt: skip
        with pytest.raises(Disconnected):
            decode(message, lambda _: None)
    deep = None
    for _ in range(5000):
        deep = {"is": "list", "of": [deep]}
    with pytest.raises(Disconnected):
        decode(deep, lambda _: None)


def test_a_value_that_holds_itself_is_an_error_and_no_hang():
    loop = []
    loop.append(loop)
    with pytest.raises(RecursionError):
        encode(loop, lambda value: value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 8,
        b"\xff" * 8,
        (5).to_bytes(8, "big") + b"notjs",
        (2).to_bytes(8, "big") + b"[]",
    ],
)
def test_a_broken_message_is_a_lost_channel(content):
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(content)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(Disconnected):
            Channel(ours.detach(), lambda request: request).receive_first()


def test_either_side_may_ask_while_it_waits():
    ours, theirs = socket.socketpair()
    first = Channel(ours.detach(), lambda n: first.call(n - 1) + 1 if n else 0)
    second = Channel(theirs.detach(), lambda n: second.call(n - 1) + 1 if n else 0)

    def serve():
        with pytest.raises(Disconnected):
            second.serve_for_ever()

    thread = threading.Thread(target=serve)
    thread.start()
    assert first.call(20) == 20
    os.close(first._descriptor)
    thread.join(5)
    assert not thread.is_alive()
    os.close(second._descriptor)
    assert json.dumps(encode({1: (2,)}, str))
