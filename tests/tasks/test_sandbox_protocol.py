"""Programs that speak the protocol by themselves, in every wrong way: none passes, none hangs."""

import pytest

from qsweep.tasks.sandbox import Limits, run_program

SPEAK = """
import json, os
def say(message=None, raw=None, announced=None):
    text = json.dumps(message).encode() if raw is None else raw
    size = len(text) if announced is None else announced
    for descriptor in range(3, 64):
        try: os.write(descriptor, size.to_bytes(8, 'big') + text)
        except OSError: pass
def ask(operation, args, target=('yours', 0)):
    say({'ask': {'changed': [], 'of': [operation, ref(*target), args, {}]}})
def send_first(of, **more): say({'answer': {'changed': [], 'of': of, **more}})
def ref(*of): return {'is': 'reference', 'of': list(of)}
def box(number, *items): return {'is': 'list', 'number': number, 'of': list(items)}
"""
MESSAGES = (
    "tell(ref('yours', -1))",
    "tell(ref('yours', 10**9))",
    "tell(ref('builtin', 'exec'))",
    "tell(ref('library', 'os', '_exit'))",
    "tell(ref('library', 'subprocess', 'Popen'))",
    "tell(ref('library', '__main__', 'check'))",
    "tell(ref('error', 5, ref('builtin', 'SystemExit'), {'is': 'tuple', 'of': [0]}, None), raised=1)",
    "tell(ref('error', 5, ref('builtin', 'int'), {'is': 'tuple', 'of': []}, None), raised=True)",
    "tell(42, raised=True)",
    "tell(ref('mine', 3, 4, None))",
    "tell(ref('class', 3))",
    "tell(ref())",
    "tell({'is': 'same', 'of': 999})",
    "tell({'is': 'same', 'of': []})",
    "tell(box(1, box(1)))",
    "tell({'is': 'list', 'number': 'x', 'of': []})",
    "say({'answer': {'changed': [[77, []]], 'of': 42}})",
    "say({'answer': {'changed': 5, 'of': 42}})",
    "say({'answer': {'dropped': 5, 'changed': [], 'of': 42}})",
    "say({'answer': 42})",
    "say({'ask': None})",
    "say(raw=b'{\"answer\": NaN}')",
    "say(raw=b'[' * 1000000)",
    "say(raw=b'{', announced=500); os._exit(0)",
    "say(raw=b'', announced=1 << 62)",
    "ask('name', [], 'order')",
    "ask('subclass', ['X', box(9), {'is': 'dict', 'of': []}])",
    "ask('getattr', ['__globals__'])",
    "ask('do', ['__getattribute__', '__globals__'])",
    "ask('do', ['__reduce_ex__', 2])",
    "ask('setattr', ['__code__', 1])",
    "ask('await', [])",
    "ask('describe', [])",
    "ask([], [])",
    "ask('call', [ref('builtin', 'exec')])",
)


@pytest.mark.parametrize("message", MESSAGES)
def test_a_wrong_message_passes_nothing(sandbox, message):
    # What was sent is read in place of the answer that comes after it.
    program = f"{SPEAK}\ndef answer(callback):\n    {message}\n    return 41\n"
    test = "def check(candidate):\n    assert candidate(lambda x: x) == 43\ncheck(answer)\n"
    outcome = run_program(sandbox, program, Limits(cpu_s=5, wall_s=30), test=test)
    assert not outcome.passed and "timed out" not in outcome.reason, outcome


@pytest.mark.parametrize(
    "change",
    [
        "o.ok = lambda *found: True",
        "type(o).ok = lambda *found: True",
        "type(o).__eq__ = lambda *found: True",
        "o.__class__ = int",
        "o.ok.__func__.__code__ = None",
        "o.runsource('raise SystemExit(0)')",
        "type(o).__mro__[1]()",
    ],
)
def test_an_object_of_the_test_keeps_its_methods(sandbox, change):
    program = (
        f"def answer(o):\n    try: {change}\n    except BaseException: pass\n"
        "    o.seen = o.value\n    return 41\n"
    )
    test = (
        "import code\n"
        "class Own(code.InteractiveInterpreter):\n"
        "    value = 7\n"
        "    def ok(self, found): return found == 42\n"
        "    def runcode(self, code): self.reached = True\n"
        "o = Own()\n"
        "found = answer(o)\n"
        "assert found == 41 and o.seen == 7 and not o.ok(found) and o != 42 and not hasattr(o, 'reached')\n"
    )
    outcome = run_program(sandbox, program, Limits(), test=test)
    assert outcome.passed, outcome


def test_a_program_does_not_stand_in_for_pythons_own_functions(sandbox):
    program = "abs = lambda x: 0\ndef answer(): return 41\n"
    test = "def check(candidate):\n    assert abs(candidate() - 42) < 1\ncheck(answer)\n"
    assert not run_program(sandbox, program, Limits(), test=test).passed
    assert run_program(sandbox, program.replace("41", "42"), Limits(), test=test).passed
    # It does where it is what is tested.
    program = "def max(items): return sorted(items)[-1] + 1\n"
    outcome = run_program(sandbox, program, Limits(), test="assert max([1, 3]) == 4\n")
    assert outcome.passed, outcome
