"""Property files answered: `verify_vnnlib`."""

import os
import sys
from dataclasses import dataclass, replace
from importlib import import_module
from math import inf, prod
from typing import Any, SupportsFloat

import numpy as np

from certify.errors import InvalidInputError, QueryError
from certify.ir.from_onnx import graph_from_onnx, input_axes
from certify.ir.graph import Graph
from certify.ir.onnx_file import read_program
from certify.ir.ops import Input, Linear, ReLU, Reshape, Scale, Shape
from certify.ir.runtime import Runtime
from certify.properties.query import Case, Query
from certify.properties.vnnlib import read_vnnlib
from certify.search.deadline import Deadline, OutOfTimeError
from certify.search.glance import glance, promising
from certify.search.inputs.attack import Replay
from certify.search.inputs.chain import Chain
from certify.search.inputs.network import chain_of
from certify.search.inputs.search import InputSearch, Progress
from certify.search.inputs.workers import run_shared
from certify.search.replay import Runs, replay
from certify.verdict import Answer, QueryVerdict, Witness

METHODS = ("auto", "inputs", "phases", "bounds")

# Free inputs up to which splitting their box is worth it.
_FEW_INPUTS = 24
# Weights of a dense network up to which samples and bounds of the whole box take less time than loading torch does.
_QUICK = 10**6
# Boxes of the first turn of every group; turns grow, so that no group waits for a hard one for ever.
_FIRST_TURN = 512
# Boxes of a turn from which on processes share it.
_SHARED_TURN = 16384


@dataclass(frozen=True, eq=False)
class Network:
    """A network as its graph and as it is run."""

    graph: Graph
    runtime: Runs

    @staticmethod
    def read(source: Any, input_shape: Shape | None = None) -> "Network":
        """From an ONNX file or a torch module; see `graph_from_onnx` and `graph_from_torch` for the errors."""
        if "torch" in sys.modules and isinstance(source, sys.modules["torch"].nn.Module):
            modules = import_module("certify.ir.module")
            graph = modules.numpy_graph(source, input_shape)
            return Network(graph, modules.ModuleRun(source, graph.input_shape))
        graph = graph_from_onnx(source, input_shape=input_shape, simplified=False)
        program = read_program(source)
        return Network(graph, Runtime(program.content, input_axes(program, input_shape)[0]))


def verify_vnnlib(
    network: Any,
    query: str | os.PathLike[str] | Query,
    *,
    timeout: SupportsFloat | None = None,
    method: str = "auto",
    seed: int = 0,
    workers: int = 1,
    input_shape: Shape | None = None,
) -> QueryVerdict:
    """Whether the network has an input and output that a property file describes as unsafe.

    Args:
        network: path of an ONNX file, also gzipped, or its content; or a torch module in eval mode.
        query: a VNN-LIB file, also gzipped, or a `Query`.
        timeout: seconds, reading the files included.
        method: "auto" chooses by the network and the number of free inputs; "inputs" splits the input box, "phases"
            the phases of the ReLUs, "bounds" only bounds it once.
        seed: of the samples; the same seed gives the same answer, unless time runs out.
        workers: processes that share a search that takes longer than a second or so.
        input_shape: of one input, without the batch axis, where the network does not tell it.

    Returns:
        SAT only with a witness that onnxruntime (torch, for a module) was run on: its outputs satisfy the
        constraints exactly, and it lies in the written box, or nearest to it where the box holds no number of
        the network's precision. UNSAT only if every part of every box is proved, with all rounding accounted for;
        it is a statement about real arithmetic on the stored weights (for a torch module on the weights of its
        simplified graph, see `graph_from_torch`).

    Raises:
        QueryError: for a property file that cannot be read or does not fit the network.
        InvalidInputError, UnsupportedOp: for a network that cannot be read.
    """
    deadline = Deadline(as_timeout(timeout))
    if workers < 1:
        raise InvalidInputError(f"workers is {workers}; expected at least 1")
    if method not in METHODS:
        raise InvalidInputError(f"method is {method!r}; expected one of {', '.join(METHODS)}")
    asked = query if isinstance(query, Query) else read_vnnlib(query)
    model = network if isinstance(network, Network) else Network.read(network, input_shape)
    _check_sizes(model, asked)
    outcome = _without_constraints(model, asked) or _search(model, asked, method, _Effort(deadline, seed, workers))
    return replace(outcome, seconds=deadline.elapsed)


def as_timeout(timeout: SupportsFloat | None) -> float | None:
    """A positive number of seconds, or None for no limit."""
    seconds = None if timeout is None else float(timeout)
    if seconds is not None and not seconds > 0:
        raise InvalidInputError(f"timeout is {timeout}; expected a positive number of seconds, or None")
    return seconds


def _check_sizes(model: Network, query: Query) -> None:
    graph = model.graph
    given = (int(np.prod(graph.input_shape)), int(np.prod(graph.output_shape)))
    if (query.n_inputs, query.n_outputs) != given:
        raise QueryError(
            f"the property has {query.n_inputs} inputs and {query.n_outputs} outputs, the network {given[0]} and"
            f" {given[1]} (shapes {graph.input_shape} and {graph.output_shape}); check that they belong together"
        )
    if query.declared is not None and query.declared.types[0] not in ("real", model.runtime.dtype.name):
        raise QueryError(
            f"the property declares {query.declared.types[0]} inputs, the network has {model.runtime.dtype.name};"
            " expected the same, or real"
        )


def _without_constraints(model: Network, query: Query) -> QueryVerdict | None:
    """A case that asks nothing of the outputs: every input is a witness."""
    for case in query.cases:
        if len(case.b) == 0:
            witness = replay(model.runtime, case, 0.5 * case.lower + 0.5 * case.upper)
            if witness is not None:
                return QueryVerdict(Answer.SAT, witness, -inf, "replay", 0, 0.0)
            return QueryVerdict(Answer.UNKNOWN, None, -inf, "replay", 0, 0.0)
    return None


@dataclass(frozen=True)
class _Effort:
    """What may be spent."""

    deadline: Deadline
    seed: int
    workers: int


def _search(model: Network, query: Query, method: str, effort: _Effort) -> QueryVerdict:
    free = max(int((case.lower < case.upper).sum()) for case in query.cases)
    if method == "phases":
        return _by_phases(model, query, effort)
    if method == "auto" and free > _FEW_INPUTS:
        return _at_once(model, query, effort) or _by_phases(model, query, effort)
    chain = chain_of(model.graph)
    if chain is None and method == "auto":
        return _at_a_glance(model, query, effort) or _by_phases(model, query, effort)
    if chain is None:
        return QueryVerdict(Answer.UNKNOWN, None, -inf, "none", 0, 0.0)
    return _by_inputs(model, chain, query, effort, once=method == "bounds")


def _at_once(model: Network, query: Query, effort: _Effort) -> QueryVerdict | None:
    """Samples, and bounds of the whole box where that is quick: an answer, if they tell it, before torch is loaded."""
    nodes = model.graph.nodes
    sizes = [prod(node.op.weight.shape) for node in nodes if isinstance(node.op, Linear)]
    dense = all(isinstance(node.op, Input | Linear | Reshape | ReLU | Scale) for node in nodes)
    if not dense or len(query.groups) > 1 or sum(sizes) > _QUICK:
        return _at_a_glance(model, query, effort)
    chain = chain_of(model.graph)
    verdict = None if chain is None else _by_inputs(model, chain, query, effort, once=True)
    return verdict if verdict is not None and verdict.answer in (Answer.SAT, Answer.UNSAT) else None


def _at_a_glance(model: Network, query: Query, effort: _Effort) -> QueryVerdict | None:
    """A witness that a few steps of descent find."""
    found: list[Witness] = []
    for case in promising(model.graph, query.cases):
        ask = _replay(model, (case,), found)

        def confirm(x: np.ndarray, ask: Replay = ask) -> bool:
            return ask(x, 0)

        if not effort.deadline.expired and glance(model.graph, case, confirm, effort.seed):
            return QueryVerdict(Answer.SAT, found[0], -inf, "descent", 0, 0.0)
    return None


def _by_inputs(model: Network, chain: Chain, query: Query, effort: _Effort, *, once: bool) -> QueryVerdict:
    """All groups of cases in turns that grow, so that an easy one does not wait for a hard one."""
    found: list[Witness] = []
    try:
        searches = [InputSearch.of(chain, group, effort.seed, effort.deadline) for group in query.groups]
    except OutOfTimeError:
        return QueryVerdict(Answer.TIMEOUT, None, -inf, "inputs", 0, 0.0)
    states = [search.start() for search in searches]
    turn = 1 if once else _FIRST_TURN
    while not (found or effort.deadline.expired or all(state.over for state in states)):
        for k, search in enumerate(searches):
            if not (found or states[k].over):
                states[k] = _turn(search, states[k], _replay(model, search.cases, found), effort, turn)
        if once:
            break
        turn *= 2
    return _verdict(states, found, "bounds" if once else "inputs", effort.deadline)


def _by_phases(model: Network, query: Query, effort: _Effort) -> QueryVerdict:
    # Loads torch, which the search over inputs does without.
    phases = import_module("certify.search.phases")
    found: list[Witness] = []

    def confirm(x: np.ndarray, case: Case) -> bool:
        witness = replay(model.runtime, case, x)
        if witness is not None:
            found.append(witness)
        return witness is not None

    outcome = phases.search_phases(
        model.graph, query, deadline=effort.deadline, seed=effort.seed, confirm=confirm, workers=effort.workers
    )
    answer = Answer[{"EMPTY": "UNSAT", "WITNESS": "SAT", "OPEN": "UNKNOWN", "TIMEOUT": "TIMEOUT"}[outcome.finding.name]]
    bound = min(float(outcome.bound.min()), 0.0)
    return QueryVerdict(answer, found[0] if found else None, bound, "phases", outcome.leaves, 0.0)


def _turn(search: InputSearch, state: Progress, replay: Replay, effort: _Effort, most: int) -> Progress:
    if effort.workers == 1 or most < _SHARED_TURN:
        return search.run(state, replay, effort.deadline, most)
    return run_shared(search, state, replay, effort.deadline, effort.workers, most)


def _replay(model: Network, cases: tuple[Case, ...], found: list[Witness]) -> Replay:
    def ask(x: np.ndarray, case: int) -> bool:
        witness = replay(model.runtime, cases[case], x)
        if witness is not None:
            found.append(witness)
        return witness is not None

    return ask


def _verdict(states: list[Progress], found: list[Witness], method: str, deadline: Deadline) -> QueryVerdict:
    boxes, bound = sum(state.boxes for state in states), min(state.bound for state in states)
    if found:
        return QueryVerdict(Answer.SAT, found[0], bound, method, boxes, 0.0)
    if all(state.proved for state in states):
        return QueryVerdict(Answer.UNSAT, None, bound, method, boxes, 0.0)
    answer = Answer.TIMEOUT if deadline.expired else Answer.UNKNOWN
    return QueryVerdict(answer, None, bound, method, boxes, 0.0)
