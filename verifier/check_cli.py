"""What `verifier check` does: has a certificate checked, with a bar while it goes on, and says the outcome."""
from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from verifier import __version__, supervisor
from verifier.errors import OutOfMemory
from verifier.options import CheckOptions
from verifier.streams import tell


def check(options: CheckOptions) -> bool:
    """Whether the certificate is accepted; the outcome goes to stdout, the sentence to stderr."""
    from verifier.certificate.arithmetic import Exact, Rounded
    from verifier.certificate.check import check as checked

    arithmetic = Exact() if options.exact else Rounded()
    try:
        with _bar() as advance, warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # numpy's, of numbers that overflow: they prove nothing
            report = checked(options.model, options.property, options.certificate, arithmetic, advance)
    except MemoryError:
        raise OutOfMemory(f"This machine has not the memory that {options.certificate} needs: check it on a larger one.") from None
    compared = _compared(options) if report.accepted else None
    supervisor.speaking()
    if options.json:
        keep = ("accepted", "arithmetic", "cases", "leaves")
        reason = None if report.accepted else report.sentence
        seen = {key: getattr(report, key) for key in keep} | {"reason": reason, "compared": compared}
        seen |= {"seconds": round(report.seconds, 3), "version": __version__}
        print(json.dumps(seen), flush=True)
    else:
        print("accepted" if report.accepted else "rejected", flush=True)
    not_there = "not compared with onnxruntime, which is not installed here"
    seen_by = not_there if compared is None else f"compared with onnxruntime at {compared} points of the region"
    proved = f"The property is proved in {report.arithmetic} arithmetic, the network {seen_by}"
    tell(f"{proved if report.accepted else report.sentence.rstrip('.')} (cases: {report.cases}, leaves: {report.leaves}, {report.seconds:.2f} s).")
    return report.accepted


def _compared(options: CheckOptions) -> int | None:
    """At how many points of the property's region the network, as the checker reads it, computes what onnxruntime does; None where that is not there.

    Raises:
        ModelError: it computes something else.
    """
    try:
        import onnxruntime  # noqa: F401

        from verifier.graph.onnx_load import load_onnx
        from verifier.graph.validate import compare_in_region
    except ImportError:
        return None
    from verifier.spec.normal import load_vnnlib

    graph = load_onnx(options.model)
    boxes = [(case.lower, case.upper) for case in load_vnnlib(options.property).cases]
    return compare_in_region(graph, options.model, boxes).points


@contextmanager
def _bar() -> Iterator[Callable[[float], None]]:
    """A bar on a terminal; takes the share that is done."""
    if not sys.stderr.isatty():
        yield lambda share: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("checking"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("check", total=1.0)
        yield lambda share: progress.update(task, completed=share)
