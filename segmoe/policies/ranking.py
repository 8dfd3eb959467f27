"""An order of resident experts by (rank, last use), from which the lowest can be taken. What a rank is: rules.py.

Experts are numbers here, and the state is a table of sequences: lists in a live cache, where functions run as they are,
arrays in a replay, which compiles them. A use only writes the new rank. The heap keeps each expert at the rank it had
when the heap last looked, which is never too high, because ranks do not fall; so if the top is up to date it is the
lowest, and if not it sinks to its place. A hit costs no heap operation, and a use causes at most one.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from segmoe.policies.rules import LFU, RANDOM, Rule, rank

NOBODY = -1
LEHMER, MODULUS = 48271, 2147483647  # Park and Miller's minimal generator: its products fit 64 bits


class Table(NamedTuple):
    """State by expert number, or by group: one group for all, or one for each layer."""

    rank: Any  # [experts] float, -inf before the first use
    turn: Any  # [experts] int, number of its last use
    step: Any  # [experts] int, pass of its last use, -1 before it
    weight: Any  # [experts] float, what trust adds
    place: Any  # [experts] int, where in its group's heap, -1 if not in memory
    group: Any  # [experts] int
    heap: Any  # [groups][places] int, the expert there
    seen_rank: Any  # [groups][places] float, its rank when the heap last looked; here, so that reads are near
    seen_turn: Any  # [groups][places] int
    size: Any  # [groups] int
    counts: Any  # [2] int: uses so far; state of the random generator
    floor: Any  # [1] float: rank of the last that left


def use(table: Table, rule: Rule, expert: int, step: int, tokens: int) -> None:
    """Take note of a use; whoever is not in memory enters."""
    counts = table.counts
    counts[0] += 1
    table.turn[expert] = counts[0]
    enters = table.place[expert] == NOBODY
    if rule.kind == RANDOM:
        if enters:
            counts[1] = counts[1] * LEHMER % MODULUS
            table.rank[expert] = table.floor[0] - math.log(counts[1] / MODULUS)
    elif table.step[expert] != step or (enters and rule.kind == LFU):
        table.rank[expert] = rank(rule, table.rank[expert], table.weight[expert], step, tokens)
    table.step[expert] = step
    if enters:
        enter(table, expert)


def leave(table: Table, rule: Rule, expert: int) -> None:
    """Take an expert out of the order; all but its frequency in memory is remembered."""
    if table.rank[expert] > table.floor[0]:
        table.floor[0] = table.rank[expert]
    remove(table, expert)
    if rule.kind == LFU:
        table.rank[expert] = 0.0


def lowest(table: Table, group: int) -> int:
    """The expert of the group that leaves first, or NOBODY."""
    if table.size[group] == 0:
        return NOBODY
    while look(table, group, 0):
        pass
    return int(table.heap[group][0])


def look(table: Table, group: int, place: int) -> bool:
    """Bring the expert at a place up to date, and tell whether it has sunk: then another stands there."""
    expert = table.heap[group][place]
    if table.seen_turn[group][place] == table.turn[expert]:
        return False
    sink(table, group, place, expert)
    return True


def fullest(table: Table, coming: int, tried: Any) -> int:
    """The group that gives one for an expert of the group `coming`: its own if no other holds more.

    `tried` tells by group who had none to give; NOBODY if no group is left.
    """
    best, most = NOBODY, 0
    if coming != NOBODY and table.size[coming] > 0 and not tried[coming]:
        best, most = coming, table.size[coming] + 1
    for group in range(len(table.size)):
        if table.size[group] > most and not tried[group]:
            best, most = group, table.size[group]
    return best


def enter(table: Table, expert: int) -> None:
    """Put an expert into its group's heap."""
    group = table.group[expert]
    table.size[group] += 1
    rise(table, group, table.size[group] - 1, expert, table.rank[expert], table.turn[expert])


def remove(table: Table, expert: int) -> None:
    """Take an expert out of its group's heap; the last one takes its place, brought up to date."""
    group, at = table.group[expert], table.place[expert]
    table.size[group] -= 1
    end = table.size[group]
    table.place[expert] = NOBODY
    if at != end:
        last = table.heap[group][end]
        rise(table, group, at, last, table.seen_rank[group][end], table.seen_turn[group][end])
        sink(table, group, table.place[last], last)


def rise(table: Table, group: int, at: int, expert: int, rank: float, turn: int) -> None:
    """Put an expert, seen at this rank and turn, at a place or nearer to the top: where its parent goes before it."""
    heap, ranks, turns = table.heap[group], table.seen_rank[group], table.seen_turn[group]
    while at > 0:
        parent = (at - 1) // 2
        if ranks[parent] < rank or (ranks[parent] == rank and turns[parent] < turn):
            break
        heap[at], ranks[at], turns[at] = heap[parent], ranks[parent], turns[parent]
        table.place[heap[at]] = at
        at = parent
    heap[at], ranks[at], turns[at] = expert, rank, turn
    table.place[expert] = at


def sink(table: Table, group: int, at: int, expert: int) -> None:
    """Put an expert, as it ranks now, at a place or farther from the top: where it goes before its children."""
    heap, ranks, turns, size = table.heap[group], table.seen_rank[group], table.seen_turn[group], table.size[group]
    rank, turn = table.rank[expert], table.turn[expert]
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        other = child + 1
        if other < size and (
            ranks[other] < ranks[child] or (ranks[other] == ranks[child] and turns[other] < turns[child])
        ):
            child = other
        if rank < ranks[child] or (rank == ranks[child] and turn < turns[child]):
            break
        heap[at], ranks[at], turns[at] = heap[child], ranks[child], turns[child]
        table.place[heap[at]] = at
        at = child
    heap[at], ranks[at], turns[at] = expert, rank, turn
    table.place[expert] = at


COMPILABLE = (rank, sink, rise, look, remove, enter, fullest, lowest, leave, use)
"""Every function that `use`, `leave`, `lowest` and `fullest` call, the called before the callers."""
