"""The command line. Thin: every command is a function elsewhere."""

from __future__ import annotations

import argparse
import io
import keyword
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from optdsl import __version__, driver
from optdsl.lang.diagnostics import Diagnostic, SpecError, to_json

T = TypeVar("T")
#: `command` of `_parser`: adds one, and gives its own parser.
_Command = Callable[..., argparse.ArgumentParser]
OK, FOUND_ERRORS, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code: 0 fine, 1 mistakes in specs, 2 wrong usage."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file name may hold what the terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("interrupted; finished files are complete, others are as they were", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe has seen enough
        import signal

        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        told = error if error.filename is None else f"{error.filename}: {error.strerror}"
        print(f"optdsl: {told}", file=sys.stderr)
        return BAD_USAGE
    except ValueError as error:
        print(f"optdsl: {error}", file=sys.stderr)
        return BAD_USAGE


def _run(arguments: Sequence[str] | None) -> int:
    if arguments is None:
        arguments = sys.argv[1:]
    first = arguments[0] if arguments else None
    parser = _parser(first if first in _OPTIONS else None)
    try:
        options = parser.parse_args(arguments)
    except SystemExit as end:  # argparse has printed what was asked for, or what is wrong
        return end.code if isinstance(end.code, int) else OK
    if not hasattr(options, "run"):
        parser.print_help()
        return BAD_USAGE
    try:
        code: int = options.run(options)
        return code
    except SpecError as error:
        _report(error.diagnostics, getattr(options, "format", "text"))
        return FOUND_ERRORS


def _parser(only: str | None = None) -> argparse.ArgumentParser:
    """The parser of the command line; that of the command `only` is made alone, as all take longer to make."""
    parser = argparse.ArgumentParser(
        prog="optdsl",
        description="Compile optimizers, written as in their papers, to torch.optim.Optimizer classes.",
        epilog="examples:\n"
        "  optdsl new my_method              write a first spec, my_method.opt\n"
        "  optdsl check my_method.opt        look for mistakes\n"
        "  optdsl compile my_method.opt      write the class, my_method.py, and its kernels beside it\n"
        "  optdsl show adamw --stage torch   see what a shipped spec becomes\n"
        "  optdsl explain adamw              its equations, and what a step costs\n"
        "  optdsl explain E0301              what a message means",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"optdsl {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def command(
        name: str, run: object, help: str, examples: str, details: str = ""
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=help,
            description=help[0].upper() + help[1:] + (f".\n\n{details}" if details else "."),
            epilog=f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run)
        return sub

    for name, add in _OPTIONS.items():
        if only in (None, name):
            add(command)
    return parser


def _check_options(command: _Command) -> None:
    check = command(
        "check",
        _check,
        "look for mistakes in specs",
        "  optdsl check my.opt\n  optdsl check specs/ --format json",
    )
    check.add_argument(
        "paths", nargs="+", metavar="SPEC", help="a file, a folder, or the name of a shipped spec"
    )
    check.add_argument("--format", choices=("text", "json"), default="text", help="json is for editors")


def _compile_options(command: _Command) -> None:
    compile_ = command(
        "compile",
        _compile,
        "compile specs to Python, C and Triton files",
        "  optdsl compile my.opt\n"
        "  optdsl compile specs/ -o generated/\n"
        "  optdsl compile adamw -o . --backend torch\n"
        "  optdsl compile adamw -o . --standalone\n"
        "  optdsl compile adamw -o . --with clip_by_global_norm --store q8",
        "A spec NAME.opt becomes NAME.py, which holds the class, NAME.c, which holds the native kernels that the\n"
        "class runs for parameters on the CPU, and NAME.triton.py, which holds those for parameters on a GPU. Keep\n"
        "them in one folder. Where the class is used, the C compiler of the machine and Triton build the kernels in\n"
        "its first step; without them, the class does the same by torch's operations.",
    )
    compile_.add_argument(
        "paths", nargs="+", metavar="SPEC", help="a file, a folder, or the name of a shipped spec"
    )
    compile_.add_argument(
        "-o",
        "--out",
        metavar="FOLDER",
        help="where to write (default: beside each spec; shipped ones need it)",
    )
    compile_.add_argument(
        "--backend",
        choices=driver.BACKENDS,
        action="append",
        help="torch: the class alone; cpu: with kernels in C; triton: with kernels for GPUs; may be repeated "
        "(default: all)",
    )
    compile_.add_argument(
        "--standalone",
        action="store_true",
        help="one file that needs torch alone, not optdsl, and has no native kernels",
    )
    _composition_options(compile_)
    compile_.add_argument("--format", choices=("text", "json"), default="text", help="how to print messages")
    compile_.add_argument("-q", "--quiet", action="store_true", help="print messages only")


def _composition_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--with",
        dest="with_",
        action="append",
        default=[],
        metavar="TRANSFORM",
        help='a transform around the optimizer, as in "clip_by_global_norm(max_norm = 0.5)", or the path of one; '
        "may be repeated",
    )
    command.add_argument(
        "--store",
        action="append",
        default=[],
        metavar="FORMAT",
        help="format of states per element: bf16, bf16_sr, q8, q4 and others for all, or KEY=FORMAT; may be repeated",
    )


def _fmt_options(command: _Command) -> None:
    fmt = command(
        "fmt",
        _fmt,
        "format specs in place",
        "  optdsl fmt my.opt\n  optdsl fmt specs/ --check\n  optdsl fmt - < my.opt",
    )
    fmt.add_argument(
        "paths", nargs="+", metavar="SPEC", help="a file, a folder (all below it), or - for standard input"
    )
    fmt.add_argument("--check", action="store_true", help="change nothing; exit 1 if a file is not formatted")


def _show_options(command: _Command) -> None:
    show = command(
        "show",
        _show,
        "print a spec at a stage of the pipeline",
        "  optdsl show adamw\n  optdsl show my.opt --stage simplified\n  optdsl show lion --stage cpu",
        "stages:\n"
        "  syntax      the syntax tree of the file\n"
        "  program     the typed program\n"
        "  simplified  the program after simplification\n"
        "  lowered     the same in core operators alone\n"
        "  opt         the program as a spec, with everything that it uses written out\n"
        "  plan        the passes over memory that the native kernels make, for each setting of the options\n"
        "  torch       the Python file without native kernels\n"
        "  cpu         the C file with the kernels for the CPU\n"
        "  triton      the Python file with the kernels for GPUs",
    )
    show.add_argument("path", metavar="SPEC", help="a file, or the name of a shipped spec")
    show.add_argument("--stage", choices=driver.STAGES, default="torch", help="default: %(default)s")


def _list_options(command: _Command) -> None:
    list_ = command(
        "list",
        _list,
        "list the shipped specs, and what a step of each costs",
        "  optdsl list\n  optdsl list --names\n  optdsl list --markdown > zoo.md",
        "STATES are the states per parameter with default options, BYTES what they take for float32 parameters,\n"
        "MOVED the bytes that a usual step reads and writes, SWEEPS its passes over a tensor (see `optdsl explain`).",
    )
    form = list_.add_mutually_exclusive_group()
    form.add_argument("--names", action="store_true", help="names only, one per line")
    form.add_argument("--markdown", action="store_true", help="a page in Markdown")


def _new_options(command: _Command) -> None:
    new = command("new", _new, "write a first spec to start from", "  optdsl new my_method")
    new.add_argument("name", metavar="NAME", help="name of the method; the file is NAME.opt")


def _bench_options(command: _Command) -> None:
    bench = command(
        "bench",
        _bench,
        "measure how long a step takes, beside torch.optim and the bandwidth of the machine",
        "  optdsl bench adamw\n"
        "  optdsl bench lion my.opt --case gpt2 --threads 1,2\n"
        "  optdsl bench sgd --set momentum=0.9 --out results/",
        "Peers take turns, so that what disturbs the machine disturbs all alike: a time is the median of a step,\n"
        "a ratio the median over the rounds, a spread the interquartile range. The first step stands apart; it\n"
        "includes a native build if there is one.\n\n"
        "cases:\n"
        "  10m    one tensor of 10M elements\n"
        "  gpt2   GPT-2 small, 124M elements in 148 tensors; takes up to 10 GB of memory\n"
        "  small  1000 tensors of 1000, with the same and with new gradients in every step\n"
        "  one    one tensor of 1 element; with `many` it gives the fixed cost of a step\n"
        "  many   1000 tensors of 1 element, with the same and with new gradients in every step",
    )
    bench.add_argument("names", nargs="+", metavar="NAME", help="a shipped spec, or the path of a spec")
    bench.add_argument(
        "--case",
        type=_comma(str),
        default=["10m", "small", "one", "many"],
        metavar="CASES",
        help="of those above, with commas, or all (default: all but gpt2)",
    )
    bench.add_argument(
        "--threads",
        type=_comma(_positive),
        default=[1],
        metavar="N,...",
        help="numbers of threads (default: 1)",
    )
    bench.add_argument("--dtype", choices=("f32", "bf16", "f64"), default="f32", help="default: %(default)s")
    bench.add_argument(
        "--repeat",
        type=_positive,
        metavar="N",
        help="rounds in each case (default: until the medians are known)",
    )
    bench.add_argument(
        "--time-limit",
        type=_seconds,
        metavar="S",
        help="seconds for the rounds of one case with one number of threads (default: 20, none with --repeat)",
    )
    bench.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="an option of the method, given to all peers; may be repeated",
    )
    bench.add_argument("--out", type=Path, metavar="FOLDER", help="write bench.json and pictures here")
    bench.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    bench.add_argument("--no-plot", action="store_true", help="draw no pictures")


def _explain_options(command: _Command) -> None:
    explain = command(
        "explain",
        _explain,
        "tell what a spec does and what a step of it costs, or what a message means",
        "  optdsl explain adamw\n"
        "  optdsl explain adamw --set amsgrad=true --bandwidth 4.3TB/s\n"
        "  optdsl explain lamb --set max_grad_norm=inf --dtype bf16\n"
        "  optdsl explain adagradnorm --shape 4096,1024 --measure\n"
        "  optdsl explain my.opt --markdown\n"
        "  optdsl explain E0301\n"
        "  optdsl explain all",
        "For a spec: its equations, its states, and the plan by which the native kernels make a step. A plan is\n"
        "a number of sweeps over a tensor; told is what each reads and writes, what must happen before the next\n"
        "begins, and how many bytes and operations that is for every parameter. It depends on the options, and\n"
        "for some methods on the shape of the tensor.\n\n"
        "docs/explain.md says what the numbers mean, and describes the JSON.",
    )
    explain.add_argument(
        "what",
        metavar="SPEC|CODE",
        help="a file, or the name of a shipped spec; or the code of a message, such as E0301, or `all` of these",
    )
    form = explain.add_mutually_exclusive_group()
    form.add_argument("--latex", action="store_true", help="print the equations alone, in LaTeX")
    form.add_argument("--markdown", action="store_true", help="print a page of Markdown")
    form.add_argument("--json", action="store_true", help="print everything as JSON")
    explain.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="an option of the method, such as amsgrad=true; may be repeated (default: those of the spec)",
    )
    explain.add_argument(
        "--shape",
        metavar="N,N,...",
        help="of the tensor (default: a matrix of 1024,1024); () for no dimension",
    )
    explain.add_argument(
        "--dtype",
        choices=("f32", "bf16", "f16", "f64"),
        help="of parameters and gradients (default: f32)",
    )
    explain.add_argument(
        "--overwrite-grad", action="store_true", help="let a step use the gradient as scratch memory"
    )
    _composition_options(explain)
    speed = explain.add_mutually_exclusive_group()
    speed.add_argument(
        "--bandwidth", metavar="B/S", help="predict times from this, such as 4.3TB/s or 900GB/s"
    )
    speed.add_argument(
        "--measure",
        action="store_true",
        help="predict times from the bandwidth of this machine, measured now",
    )


def _stored(action: argparse.ArgumentParser) -> None:
    action.add_argument("path", metavar="STORE", help="the file, or the database, of a search")
    action.add_argument(
        "--run",
        type=_positive,
        dest="number",
        metavar="N",
        help="of several in it (default: the last one begun)",
    )


def _search_options(command: _Command) -> None:
    search = command(
        "search",
        _search,
        "search for better methods: specs that evolve from those that are there",
        "  optdsl search --from adamw --budget 30m --store run.db --workers 2\n"
        "  optdsl search --from my.opt --from lion --tasks digits_mlp,regression --evaluations 2000 --store run.db\n"
        "  optdsl search --from adamw --arm tuning --budget 30m --store tuning.db\n"
        "  optdsl search --from adamw --objectives state-bytes,loss --budget 30m --store small.db\n"
        "  optdsl search --from adamw --budget 8h --executor dask --scheduler tcp://host:8786 --ahead 64 \\\n"
        "      --store postgresql://user@host/searches\n"
        "  optdsl search report run.db -o report.html\n"
        "  optdsl search export run.db -o found/",
        "Candidates are changed, filtered and trained on small tasks. The best ones are then measured again: with\n"
        "fresh seeds, on larger tasks, on tasks of other kinds, and at the end once on held-out tasks beside AdamW,\n"
        "Lion and SGD with momentum, all tuned alike. Often none of them is better, and the report says so.\n\n"
        "Everything is in the store. The same command with the same store goes on where an earlier one ended,\n"
        "whatever ended it; Ctrl-C ends a search with a report of what there is, and exit status 130. Searches with\n"
        "other settings, a seed say, may share it, at the same time too: each is a run of its own.\n\n"
        "`report` and `export` take a store: `optdsl search report --help`, `optdsl search export --help`.",
    )
    actions = search.add_subparsers(title="what to do with a store", metavar="ACTION", dest="action")
    text = "print what a store holds, or write it as a page of HTML"
    report = actions.add_parser("report", help=text, description=f"{text[0].upper()}{text[1:]}.")
    _stored(report)
    report.add_argument("-o", "--out", type=Path, metavar="FILE", help="the page (default: print text)")
    text = "write what was found as specs"
    export = actions.add_parser("export", help=text, description=f"{text[0].upper()}{text[1:]}.")
    _stored(export)
    export.add_argument("-o", "--out", type=Path, metavar="FOLDER", required=True, help="where to write")
    search.add_argument(
        "--from",
        dest="starts",
        action="append",
        default=[],
        metavar="SPEC",
        help="what to start from: a file, or the name of a shipped spec; may be repeated (default: adamw)",
    )
    search.add_argument(
        "--tasks",
        type=_comma(str),
        default=[],
        metavar="TASKS",
        help="what candidates are trained on, with commas (default: all small tasks of the search split)",
    )
    length = search.add_mutually_exclusive_group()
    length.add_argument(
        "--budget",
        metavar="TIME",
        help="such as 90s, 30m, 2h; two fifths of it, at most 15m, are for tests of what was found (default: 10m)",
    )
    length.add_argument(
        "--evaluations",
        type=_positive,
        metavar="N",
        help="how many candidates to train instead; then the result depends on the seed alone",
    )
    search.add_argument("--seed", type=int, default=0, help="of all that is random (default: 0)")
    search.add_argument(
        "--store",
        metavar="STORE",
        help="where everything is kept: a file, made if there is none, or postgresql://user@host/database",
    )
    search.add_argument("--workers", type=_positive, metavar="N", help="processes (default: 1)")
    search.add_argument(
        "--executor",
        choices=("local", "dask"),
        default="local",
        help="who trains: processes of this machine, or a cluster of dask (default: local)",
    )
    search.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="of a dask cluster that is running, such as tcp://host:8786 (default: DASK_SCHEDULER_ADDRESS, else one "
        "is made of --workers processes of this machine)",
    )
    search.add_argument(
        "--ahead",
        type=_positive,
        default=8,
        metavar="N",
        help="how many are proposed before the first of them has a result; for more than 8 workers (default: 8)",
    )
    search.add_argument(
        "--arm",
        choices=("evolution", "random", "tuning"),
        default="evolution",
        help="how candidates come about; `random` and `tuning` (of constants alone) are there to compare with",
    )
    search.add_argument(
        "--population",
        type=_positive,
        default=100,
        metavar="N",
        help="how many may have children (default: 100)",
    )
    search.add_argument(
        "--objectives",
        type=_comma(str),
        default=["loss"],
        metavar="NAMES",
        help="what is to be small, the most important first, with commas: loss, state-bytes, step-bytes (default: "
        "loss)",
    )
    search.add_argument(
        "--sizes",
        choices=("small", "both"),
        help="of the tasks behind the search (default: both, small for less than 10 minutes or 1000 evaluations)",
    )
    search.add_argument(
        "--no-proof", action="store_true", help="search only, and leave the tests to a later call"
    )


#: What adds each command to the parser, in the order of the help text.
_OPTIONS: dict[str, Callable[[_Command], None]] = {
    "check": _check_options,
    "compile": _compile_options,
    "fmt": _fmt_options,
    "show": _show_options,
    "list": _list_options,
    "new": _new_options,
    "bench": _bench_options,
    "explain": _explain_options,
    "search": _search_options,
}


def _comma(each: Callable[[str], T]) -> Callable[[str], list[T]]:
    """Reads values with commas between them."""

    def read(text: str) -> list[T]:
        return list(dict.fromkeys(each(part.strip()) for part in text.split(",")))

    return read


def _positive(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"`{text}` is not a whole number above 0")
    return number


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"`{text}` is not a number of seconds above 0")
    return number


# ---- commands ---------------------------------------------------------------------------------------------


def _paths(names: Iterable[str]) -> list[Path]:
    """Files and folders as they are, bare names as shipped specs."""
    return [Path(name) if Path(name).exists() else driver.locate(name) for name in names]


def _spec_paths(names: Sequence[str]) -> list[Path]:
    """The specs that `names` mean. Raises ValueError when there is none."""
    paths = list(driver.spec_paths(_paths(names)))
    if not paths:
        raise ValueError(f"there is no .opt file in {', '.join(names)}")
    return paths


def _check(options: argparse.Namespace) -> int:
    from optdsl.check import check_path

    diagnostics: list[Diagnostic] = []
    count = 0
    for path in _spec_paths(options.paths):
        count += 1
        diagnostics += check_path(path).diagnostics
    _report(diagnostics, options.format)
    errors = sum(d.is_error for d in diagnostics)
    if options.format == "text" and not errors:
        print(f"{count} {'spec' if count == 1 else 'specs'} without mistakes")
    return FOUND_ERRORS if errors else OK


def _compile(options: argparse.Namespace) -> int:
    backends = tuple(options.backend) if options.backend else driver.BACKENDS
    if options.standalone and {"cpu", "triton"} & set(options.backend or ()):
        raise ValueError("a standalone file has no native kernels: leave out `--backend` or `--standalone`")
    shipped = [name for name in options.paths if not Path(name).exists()]
    paths = _spec_paths(options.paths)
    if shipped and options.out is None:
        raise ValueError(f"`{shipped[0]}` is a shipped spec: say with -o where to write, as in `-o .`")
    show = sys.stderr.isatty() and len(paths) > 1 and not options.quiet

    def progress(path: Path) -> None:
        if show:
            print(f"\r\x1b[K{path.name}", end="", file=sys.stderr, flush=True)

    from optdsl.compose import store_of

    results = driver.compile(
        paths,
        options.out,
        backends,
        standalone=options.standalone,
        progress=progress,
        with_=options.with_,
        store=store_of(options.store),
    )
    if show:
        print("\r\x1b[K", end="", file=sys.stderr)
    _report([d for result in results for d in result.diagnostics], options.format)
    failed = 0
    for result in results:
        failed += bool(result.checked.errors)
        if options.quiet or options.format == "json":
            continue
        if result.checked.program is not None:
            files, note = ", ".join(map(str, result.files)), result.checked.program.name
            if result.no_kernels is not None:
                note += f", without native kernels: {result.no_kernels}"
            print(f"{result.path} -> {files} ({note})")
        elif not result.checked.errors:
            print(f"{result.path}: {result.checked.kind}, used by other specs; nothing to write")
    return FOUND_ERRORS if failed else OK


def _fmt(options: argparse.Namespace) -> int:
    from optdsl.lang.formatter import format_text
    from optdsl.lang.source import read_open, read_text

    if options.paths == ["-"]:
        before = read_open(sys.stdin.buffer, "<stdin>")
        after = format_text(before, "<stdin>")
        if options.check:
            return FOUND_ERRORS if after != before else OK
        sys.stdout.flush()
        sys.stdout.buffer.write(after.encode())
        return OK
    paths: list[Path] = []
    for root in map(Path, options.paths):
        if not root.exists():
            raise FileNotFoundError(f"there is no file or folder `{root}`")
        paths += sorted(root.rglob("*.opt")) if root.is_dir() else [root]
    changed = 0
    problems: list[Diagnostic] = []
    for path in paths:
        try:
            before = read_text(path)
            after = format_text(before, str(path))
        except SpecError as error:
            problems += error.diagnostics
            continue
        if after != before:
            changed += 1
            print(f"{'would format' if options.check else 'formatted'} {path}")
            if not options.check:
                driver.write(path, after)
    _report(problems, "text")
    return FOUND_ERRORS if problems or (changed and options.check) else OK


def _show(options: argparse.Namespace) -> int:
    path = Path(options.path)
    text = driver.show(path if path.is_file() else driver.locate(options.path), options.stage)
    if sys.stdout.isatty():  # texts of a spec must not steer a terminal
        shown = (c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
        text = "".join(shown)
    sys.stdout.write(text)
    return OK


def _list(options: argparse.Namespace) -> int:
    if options.names:
        print("\n".join(driver.shipped_specs()))
        return OK
    from optdsl.analysis import zoo

    rows = None if options.markdown else zoo.kept()
    if rows is None:
        paths, show, rows = driver.shipped_specs(), sys.stderr.isatty(), []
        for name, path in paths.items():
            if show:
                print(f"\r\x1b[K{len(rows)} of {len(paths)}: {name}", end="", file=sys.stderr, flush=True)
            rows.append(zoo.entry(name, path))
        if show:
            print("\r\x1b[K", end="", file=sys.stderr)
        zoo.keep(rows)
    sys.stdout.write(zoo.markdown(rows) if options.markdown else zoo.terminal(rows))
    return OK


_FIRST_SPEC = '''optimizer {name}:
    """{name}: say in one line what it does."""
    cite: "Authors year, Title, where"

    hyper:
        lr = 1e-3 in [0, inf)            "step size"
        momentum = 0.9 in [0, 1)         "how much of the past is kept"
        weight_decay = 0.01 in [0, inf)  "decoupled weight decay"

    state:
        m = 0

    step:
        m = momentum * m + (1 - momentum) * g
        p = p * (1 - lr * weight_decay)
        p = p - lr * m
'''


def _new(options: argparse.Namespace) -> int:
    stem = Path(options.name).name.removesuffix(".opt")
    words = [word for word in stem.replace("-", "_").split("_") if word]
    title = "".join(word[0].upper() + word[1:] for word in words)
    if not (title.isascii() and title.isidentifier()) or keyword.iskeyword(title):
        raise ValueError(f"`{options.name}` is not a name: use letters, digits and underscores")
    path = Path(options.name).with_name(f"{'_'.join(words)}.opt")
    text = _FIRST_SPEC.format(name=title)
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ValueError(f"{path} exists already; nothing was changed") from None
    print(f"{path} written; `optdsl compile {path}` makes a class of it")
    return OK


def _bench(options: argparse.Namespace) -> int:
    from optdsl.analysis.bench import cases

    chosen = cases.find(options.case)
    from optdsl.analysis.bench import command, peers, run  # these import torch
    from optdsl.analysis.setting import options_of

    methods = peers.methods(options.names, options_of(options.set))
    _report([d for method in methods for d in method.diagnostics], "text")
    settings = run.Settings(chosen, options.threads, options.dtype, options.repeat, options.time_limit)
    command.run(methods, settings, options.out, options.json, not options.no_plot)
    return OK


def _search(options: argparse.Namespace) -> int:
    if options.action is None and options.store is None:
        raise ValueError("say with --store where to keep what is found, as in `--store run.db`")
    from optdsl.search import command  # imports torch

    if options.action == "report":
        command.write_report(options.path, options.out, options.number)
        return OK
    if options.action == "export":
        command.write_specs(options.path, options.out, options.number)
        return OK
    budget = None if options.evaluations else command.seconds(options.budget or "10m")
    request = command.Request(
        options.starts or ["adamw"],
        options.tasks,
        options.store,
        seed=options.seed,
        arm=options.arm,
        workers=options.workers,
        executor=options.executor,
        scheduler=options.scheduler,
        population=options.population,
        ahead=options.ahead,
        objectives=options.objectives,
        budget=budget,
        evaluations=options.evaluations,
        sizes=options.sizes,
        proof=not options.no_proof,
    )
    return OK if command.search(request) else INTERRUPTED


def _explain(options: argparse.Namespace) -> int:
    from optdsl.lang.diagnostics import CODES, nearest

    what: str = options.what
    given = {name: value for name, value in vars(options).items() if name not in ("run", "what") and value}
    if what != "all" and re.fullmatch("[EeWw][0-9]+", what) is None:
        return _explain_spec(options)
    if given:
        flag = next(iter(given)).replace("_", "-")
        raise ValueError(f"`--{flag}` is for specs; `{what}` is {'no spec' if what == 'all' else 'a code'}")
    if what == "all":
        for code, title in CODES.items():
            print(f"{code}  {title}")
        return OK
    from optdsl.lang.explain import page

    code = what.upper()
    if code not in CODES:
        help = nearest(code, CODES) or "`optdsl explain all` lists them"
        raise ValueError(f"there is no code `{what}`; {help}")
    sys.stdout.write(page(code))
    return OK


def _explain_spec(options: argparse.Namespace) -> int:
    from optdsl.analysis import equations
    from optdsl.analysis import explain as explanation
    from optdsl.analysis import setting as settings

    try:
        path = driver.locate(options.what)
    except FileNotFoundError as error:
        codes = (
            "" if "did you mean" in str(error) else "; of codes of messages, `optdsl explain all` lists them"
        )
        raise ValueError(f"{error}{codes}") from None
    changes: dict[str, Any] = {"overwrite_grad": options.overwrite_grad}
    if options.shape is not None:
        changes["shape"] = settings.shape_of(options.shape)
    if options.dtype is not None:
        changes["dtype"] = options.dtype
    setting = settings.Setting(settings.options_of(options.set), **changes)
    speed = None
    if options.bandwidth is not None:
        speed = explanation.Bandwidth(settings.bandwidth_of(options.bandwidth), "given")
    from optdsl.compose import store_of

    program, diagnostics = driver.program_of(path, options.with_, store_of(options.store))
    _report(diagnostics, "text")
    setting.hypers(program)  # what is wrong with an option is told before anything is measured
    if options.latex:
        sys.stdout.write(equations.latex(program))
        return OK
    if options.measure:
        from optdsl.analysis.bench import machine  # imports torch

        speed = explanation.Bandwidth(machine.bandwidth()[machine.ONE_ARRAY], "measured")
    found = explanation.explain(program, driver.simplify(program), setting, speed)
    if options.json:
        sys.stdout.write(explanation.to_json(found, str(path)))
        return OK
    from optdsl.analysis import text

    sys.stdout.write(text.markdown(found) if options.markdown else text.terminal(found))
    return OK


def _report(diagnostics: Iterable[Diagnostic], format: str) -> None:
    """Prints messages: text to standard error, JSON to standard output."""
    diagnostics = list(diagnostics)
    if format == "json":
        print(to_json(diagnostics))
        return
    color = sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    for diagnostic in diagnostics:
        print(diagnostic.render(color), end="\n\n", file=sys.stderr)
    errors = sum(d.is_error for d in diagnostics)
    if errors:
        print(f"{errors} {'error' if errors == 1 else 'errors'}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
