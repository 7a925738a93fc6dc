"""The formatter: one layout, the same meaning, every comment kept."""

import random
import re
from pathlib import Path

import pytest

from optdsl.check import check_path, check_text
from optdsl.lang import formatter
from optdsl.lang.diagnostics import SpecError
from optdsl.lang.formatter import FormatterError, format_text, outline
from optdsl.lang.grammar import LineError, parse_line
from optdsl.lang.parser import parse
from optdsl.lang.source import read_text, split
from optdsl.lang.syntax import File

ROOT = Path(__file__).resolve().parents[2]
CORPUS = sorted((ROOT / "tests" / "lang" / "corpus").glob("*.opt"))
SPECS = sorted((ROOT / "specs").rglob("*.opt"))
FILES = pytest.mark.parametrize("path", [*CORPUS, *SPECS], ids=lambda path: path.relative_to(ROOT).as_posix())


def tree(text: str) -> File:
    """The syntax tree of a text that parses."""
    source = split(text, "test.opt")
    file = parse(source)
    assert not source.report.found, source.report.found
    return file


def comments(text: str) -> list[str]:
    """The comments of a text, in order."""
    return [comment.text.rstrip() for comment in split(text, "test.opt").comments]


def formatted(text: str) -> str:
    """The layout of `text`, checked for what holds of any layout."""
    result = format_text(text, "test.opt")
    assert format_text(result, "test.opt") == result
    assert outline(tree(result)) == outline(tree(text))
    assert comments(result) == comments(text)
    assert "\n\n\n\n" not in result
    assert result.endswith("\n")
    assert not result.endswith("\n\n")
    assert not result.startswith("\n")
    return result


def in_step(lines: str) -> str:
    """The layout of lines of a step."""
    result = formatted(f"optimizer A:\n    step:\n{lines}")
    return result.removeprefix("optimizer A:\n    step:\n")


def in_section(name: str, lines: str) -> str:
    """The layout of lines of `hyper:` or `state:`, without their indentation."""
    result = formatted(f"optimizer A:\n    {name}:\n{lines}\n    step:\n        p = g\n")
    inner = result.removeprefix(f"optimizer A:\n    {name}:\n").removesuffix("\n    step:\n        p = g\n")
    return "".join(line.removeprefix("        ") for line in inner.splitlines(keepends=True))


MESSY = '''# header
edition 1
import   "lib/common.opt"
import "b.opt"   # tail
def f(x,y ,): return x+y   # one
def g2( x ): return -x^-2
# about def
def h(x):
  """Doc
       indented
     more "quoted"   """
  a=x*( 1 # c1
     # own
   + f( 2,
   3
   ))
  return a if not(x>0) and  -x<1 else a'
  # end of h


optimizer  A :
  """  One line. """
  cite:"x y"
  hyper :
    lr=1e-3 in(0,inf) "step size"  # why
    betas=(beta1:0.9,beta2 : .999)in[0,1)


    # note
    mode="l2" in{"l2","dec"}"doc"
    big = -inf
  state:
    m [ rows ]=0 as foo stored bf16


    v
  use X( lr=3e-4,betas=(0.9,f(g,over = rows))) as y with g=2*g
  step when ndim>=2:
     if t>1: p=p-g
     else:
        p = p-sum( g,over = all )
     every 10 offset -1+ 3:
        p=p@p'
        # deep
   # mid
  step otherwise:
    repeat 3 : p=p
# eof'''

NEAT = '''# header
edition 1
import "lib/common.opt"
import "b.opt"  # tail


def f(x, y,): return x + y  # one
def g2(x): return -x^-2


# about def
def h(x):
    """Doc
      indented
    more "quoted" """
    a = x * (1  # c1
        # own
        + f(2,
            3
    ))
    return a if not (x > 0) and -x < 1 else a'
    # end of h


optimizer A:
    """One line."""
    cite: "x y"

    hyper:
        lr = 1e-3 in (0, inf)                        "step size"  # why
        betas = (beta1: 0.9, beta2: .999) in [0, 1)

        # note
        mode = "l2" in {"l2", "dec"}                 "doc"
        big = -inf

    state:
        m [rows] = 0 as foo stored bf16

        v

    use X(lr = 3e-4, betas = (0.9, f(g, over=rows))) as y with g = 2 * g

    step when ndim >= 2:
        if t > 1: p = p - g
        else:
            p = p - sum(g, over=all)
        every 10 offset -1 + 3:
            p = p @ p'
            # deep

    # mid
    step otherwise:
        repeat 3: p = p
# eof
'''


def test_everything_at_once() -> None:
    assert formatted(MESSY) == NEAT
    assert formatted(NEAT) == NEAT


@FILES
def test_files_keep_their_meaning_and_comments(path: Path) -> None:
    formatted(read_text(path).replace("\r\n", "\n"))


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_the_corpus_is_right(path: Path) -> None:
    codes = {d.code for d in check_path(path).diagnostics}
    assert codes == ({"E0207", "E0308"} if path.stem == "reserved" else set())


def test_the_corpus_has_every_rule_of_the_grammar() -> None:
    grammar = (ROOT / "grammar" / "optdsl.lark").read_text("utf-8")
    lines = [line.split("//")[0] for line in grammar.splitlines()]
    names = {name for line in lines for name in re.findall(r"->\s*(\w+)", line)}
    names |= {m[1] for line in lines if (m := re.match(r"([a-z]\w*):", line))}
    seen: set[str] = set()
    kinds = {"top", "member", "hyper", "state", "statement"}
    for path in CORPUS:
        for line in split(read_text(path), str(path)).logical:
            for kind in kinds:
                try:
                    found = parse_line(kind, line.text)
                except LineError:
                    continue
                seen |= {str(node.data) for node in found.iter_subtrees()}
    assert names - kinds <= seen


# ---- what is where -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("x=-1", "x = -1"),
        ("x = a-1", "x = a - 1"),
        ("x = - - a", "x = --a"),
        ("x = a - - 1", "x = a - -1"),
        ("x = ( - a )", "x = (-a)"),
        ("x = f(- a,+ b)", "x = f(-a, +b)"),
        ("x = a ^ - b ^ 2", "x = a^-b^2"),
        ("x = -a ^ (b+1)", "x = -a^(b + 1)"),
        ("x = 2*-a", "x = 2 * -a"),
        ("x = a<- b", "x = a < -b"),
        ("x = a '*b'", "x = a' * b'"),
        ("x = a@b/c", "x = a @ b / c"),
        ("x = not-a", "x = not -a"),
        ("x = not(a)or(b)and(c)", "x = not (a) or (b) and (c)"),
        ("x = -a if-b else-c", "x = -a if -b else -c"),
        ("x = 0<=a!=b", "x = 0 <= a != b"),
        ("x = 1E-3+.5+1.+1e5", "x = 1E-3 + .5 + 1. + 1e5"),
        ("x = f ( a ,b , over = rows , )", "x = f(a, b, over=rows,)"),
        ("x = f ( )", "x = f()"),
        ('x = mode=="a  b"', 'x = mode == "a  b"'),
        ("x = a if b==1else c", "x = a if b == 1 else c"),
        ("use X ( )", "use X()"),
        (
            "use X(a=1,b=( - 1,f(x,over=all)))as y with g=- g",
            "use X(a = 1, b = (-1, f(x, over=all))) as y with g = -g",
        ),
        ("if a :x=1", "if a: x = 1"),
        ("every-a offset-1:x=1", "every -a offset -1: x = 1"),
        ("every offset - offset offset - offset: x=1", "every offset - offset offset -offset: x = 1"),
        ("repeat(3):x=1", "repeat (3): x = 1"),
        ("x\t=\t1", "x = 1"),
    ],
)
def test_spaces(given: str, wanted: str) -> None:
    assert in_step(f"        {given}\n") == f"        {wanted}\n"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("a=1", "a = 1"),
        ("a= - 1.5in[- inf,+ 2.5]", "a = -1.5 in [-inf, +2.5]"),
        ("a=( b:1 , c:- 2 , )in( 0,1 ]", "a = (b: 1, c: -2,) in (0, 1]"),
        ('a="x"in{ "x","y" , }', 'a = "x" in {"x", "y",}'),
        ("a=true", "a = true"),
    ],
)
def test_spaces_of_hyperparameters(given: str, wanted: str) -> None:
    assert in_section("hyper", f"        {given}\n") == f"{wanted}\n"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("m", "m"),
        ("m=- g", "m = -g"),
        ("m[rows,cols]=0as key stored q8", "m [rows, cols] = 0 as key stored q8"),
        ("m as key", "m as key"),
    ],
)
def test_spaces_of_states(given: str, wanted: str) -> None:
    assert in_section("state", f"        {given}\n") == f"{wanted}\n"


def test_docs_stand_in_one_column_behind_the_longest_line() -> None:
    given = """\
        a = 1 "first"
        # between
        bcd = 1.5 in (0, 2)

        e = (f: 1, g: 2) "second"  # and a comment
"""
    wanted = """\
a = 1                "first"
# between
bcd = 1.5 in (0, 2)

e = (f: 1, g: 2)     "second"  # and a comment
"""
    assert in_section("hyper", given) == wanted


def test_a_string_default_is_not_a_doc() -> None:
    assert in_section("hyper", '        a    =   "x"\n') == 'a = "x"\n'
    assert (
        in_section("hyper", '        a = "x"    "y"\n        longer = 1\n') == 'a = "x"     "y"\nlonger = 1\n'
    )


def test_line_breaks_stay_inside_brackets() -> None:
    given = """\
        x = f(
                        a,  # one

              # two
          g(b,
          c
          ), [
        )
        y = (a
          + (b
          - c))
"""
    given = given.replace(", [\n", "\n")
    wanted = """\
        x = f(
            a,  # one
            # two
            g(b,
                c
            )
        )
        y = (a
            + (b
                - c))
"""
    assert in_step(given) == wanted


def test_a_comment_in_front_of_a_closing_bracket() -> None:
    given = "        x = f(a,\n  # last\n  )  # end\n"
    assert in_step(given) == "        x = f(a,\n            # last\n        )  # end\n"


def test_long_lines_are_left_alone() -> None:
    line = "        x = " + " + ".join(f"name{i}" for i in range(40)) + "\n"
    assert in_step(line) == line


def test_comments_go_with_the_block_they_stand_in() -> None:
    given = """\
optimizer A:
  # of the member
  step:
      # of the statement
      if t > 1:
          p = g
          # still in the branch
       # in the step, if only just
      # in the step
      p = p - g   # behind
       # the end of the step
   # the end of the spec
# between
 # at the top as well
optimizer B:
  step: # behind a header
            # deeper than what follows
      p = g
# the end
      # is the end
"""
    wanted = """\
optimizer A:
    # of the member
    step:
        # of the statement
        if t > 1:
            p = g
            # still in the branch
        # in the step, if only just
        # in the step
        p = p - g  # behind
        # the end of the step
    # the end of the spec


# between
# at the top as well
optimizer B:
    step:  # behind a header
        # deeper than what follows
        p = g
# the end
# is the end
"""
    assert formatted(given) == wanted


def test_blank_lines() -> None:
    given = """\


# a file


edition 1

import "a.opt"
import "b.opt"
def f(x): return x
def g(x): return x

def h(x):

    return x
optimizer A:



    cite: "x"
    hyper:

        a = 1



        b = 2
    # comes with the states
    state:
        m = 0
    use F()
    use G()


    use H()
    step when t > 1:

        p = a


        p = b
    step otherwise:
        p = m


"""
    wanted = """\
# a file

edition 1

import "a.opt"
import "b.opt"


def f(x): return x
def g(x): return x


def h(x):
    return x


optimizer A:
    cite: "x"

    hyper:
        a = 1

        b = 2

    # comes with the states
    state:
        m = 0

    use F()
    use G()

    use H()

    step when t > 1:
        p = a

        p = b

    step otherwise:
        p = m
"""
    assert formatted(given) == wanted


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ('"""  x """', '"""x"""'),
        ('"x"', '"x"'),
        ('""""x" y"""', '""""x" y"""'),
        ('"""x "y" """', '"""x "y" """'),
        ('"""x \\\\ """', '"""x \\\\"""'),
        ('"""x \\ """', '"""x \\ """'),
        ('"""x\n"""', '"""x\n    """'),
        ('"""\n   x\n     y\n   z"""', '"""\n    x\n      y\n    z"""'),
        ('"""x\n\ty\n\t    z\n  """', '"""x\n    y\n        z\n    """'),
        ('"""x   \n\n\n  y"""', '"""x\n\n\n    y"""'),
        ('""""""', '""""""'),
        ('""""\n n"\t"""', '""""\n    n" """'),
        ('"""x\\n   y\n z"""', '"""x\\n   y\n    z"""'),
    ],
)
def test_docstrings(given: str, wanted: str) -> None:
    result = formatted(f"optimizer A:\n  {given}\n  step:\n    p = g\n")
    assert result == f"optimizer A:\n    {wanted}\n\n    step:\n        p = g\n"


def test_docstrings_of_functions_and_steps_move_with_their_block() -> None:
    given = 'def f(x):\n  """a\n    b\n  c"""\n  return x\n'
    assert formatted(given) == 'def f(x):\n    """a\n      b\n    c"""\n    return x\n'


def test_other_strings_stay_as_they_are() -> None:
    given = 'optimizer A:\n  cite:"""a  \n b"""\n  step: p = g\n'.replace("step: p = g", "step:\n   p = g")
    assert formatted(given) == 'optimizer A:\n    cite: """a  \n b"""\n\n    step:\n        p = g\n'


def test_other_line_ends_and_a_byte_order_mark_are_read() -> None:
    for end in ("\r\n", "\r"):
        assert format_text("\ufeff" + MESSY.replace("\n", end), "test.opt") == NEAT


# ---- what it refuses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "E0109"),
        ("# only a comment\n", "E0109"),
        ("optimizer A:\n    step:\n        p = = g\n", "E0101"),
        ("optimizer A:\n    step:\n\tp = g\n", "E0004"),
        ("optimizer A:\n    step:\n        p = (g\n", "E0007"),
        ("optimizer A:\n    hyper:\n        a = 1\n", "E0107"),
        ("optimizer A:\n    step:\n        p = g\n      p = g\n", "E0005"),
    ],
)
def test_what_does_not_parse_is_refused(text: str, code: str) -> None:
    with pytest.raises(SpecError) as caught:
        format_text(text, "test.opt")
    assert code in [d.code for d in caught.value.diagnostics]


def test_a_mistake_of_the_formatter_is_never_written(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "optimizer A:\n    step:\n        p = g - p  # here\n"
    for wrong in (text.replace("g - p", "g + p"), text.replace("# here", ""), text.replace("g -", "g - (")):
        monkeypatch.setattr(formatter, "_lines", lambda _, wrong=wrong: iter(wrong.splitlines()))
        with pytest.raises(FormatterError, match="please report"):
            format_text(text, "test.opt")


def test_what_only_the_layout_makes_too_large_is_refused() -> None:
    text = "optimizer A:\n step:\n" + "  p=p+g\n" * 4990
    with pytest.raises(SpecError) as caught:
        format_text(text, "test.opt")
    assert [d.code for d in caught.value.diagnostics] == ["E0003"]


# ---- noise -----------------------------------------------------------------------------------------------

TOKEN = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*"""|"(?:[^"\\\n]|\\.)*"|#.*'
    r"|(?:\d+\.\d*|\.\d+|\d+)(?:[eE][+-]?\d+)?|\w+|[<>=!]=|\S"
)


def noisy(text: str, random_: random.Random) -> str:
    """`text` with other blanks between its tokens, other indentation and other blank lines."""
    step = random_.randint(1, 7)
    lines = []
    for line in text.splitlines():
        if random_.random() < 0.2:
            lines += [" " * random_.randint(0, 9)] * random_.randint(1, 4)
        code, previous = " " * (step * ((len(line) - len(line.lstrip())) // 4)), ""
        for token in TOKEN.findall(line):
            words = re.search(r"[\w.]$", previous) and re.match(r"[\w.]", token)
            code += (" " * random_.randint(1 if words else 0, 3) if previous else "") + token
            previous = token
        lines.append(code + " " * random_.randint(0, 2))
    return "\n".join(lines) + "\n" * random_.randint(0, 3)


@pytest.mark.parametrize("seed", range(10))
def test_noise_makes_no_difference(seed: int) -> None:
    random_ = random.Random(seed)
    for path in [*CORPUS, *SPECS]:
        neat = format_text(read_text(path), "test.opt")
        if any("\n" in doc for doc in re.findall(r'""".*?"""', neat, re.DOTALL)):
            continue  # blanks count inside a docstring
        text = noisy(neat, random_)
        try:
            result = format_text(text, "test.opt")
        except SpecError as error:
            pytest.fail(f"seed {seed}, {path.name}: {error}\n{text}")
        squeezed = [line for line in result.splitlines() if line]
        assert squeezed == [line for line in neat.splitlines() if line], f"seed {seed}, {path.name}"


@pytest.mark.parametrize("seed", range(4))
def test_strings_of_odd_characters(seed: int) -> None:
    places = [
        "optimizer A:\n  {}\n  step:\n    p=g\n",
        "optimizer A:\n  cite:{} # c\n  step:\n    p=g\n",
        "def f(x):\n     {}\n     return x\n",
        "optimizer A:\n  hyper:\n    a=1 {} # x\n    bb=2\n  step:\n    p=g\n",
        "optimizer A:\n  step:\n    p=f(g,\n  {},\n # x\n  b)\n",
    ]
    random_ = random.Random(seed)
    for _ in range(400):
        quotes = random_.choice(['"', '"""'])
        body = "".join(
            random_.choices(
                ['"', "\\", " ", "\n", "\t", "a", "#", "n", "\f", "\n    "], k=random_.randint(0, 14)
            )
        )
        text = random_.choice(places).format(quotes + body + quotes)
        try:
            result = format_text(text, "test.opt")
        except SpecError:
            continue
        assert format_text(result, "test.opt") == result, f"seed {seed}: {text!r}"


def test_formatting_changes_no_message() -> None:
    text = "optimizer A:\n  step:\n    x=unknown+1\n    p=p-x\n"
    before = [(d.code, d.message) for d in check_text(text).diagnostics]
    assert before == [(d.code, d.message) for d in check_text(formatted(text)).diagnostics]
