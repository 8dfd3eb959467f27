"""Does each dimension of salience move where, and only where, what it claims to measure moved? On the embedded model.

    python -m tests.benchmarks.salience [--sequences 80]

An observer reads three of the four domains for a while, then sequences of 256 tokens of one of them. The second half of
the text is changed (stimuli.py), or, for "its own text", the whole sequence is of another domain; what that does to the
stock model is measured without the observer (causes.py) and what scores do is held against it (validity.py). Or the
text stays and the model, or what is heard of it, is changed at one place (interventions.py), of which the definitions
say what must follow (expectations.py). Each sequence starts from the same state of the observer.

A few sequences are enough to see it run, and leave most cells open.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import click
import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from observer.salience import DIMENSIONS
from tests.benchmarks.causes import OTHERS, Array
from tests.benchmarks.expectations import INTERVENTIONS
from tests.benchmarks.responses import AGAINST, WARM_SEQUENCES, Found, Pair, gathered, responses
from tests.benchmarks.validity import NEAR, Interval, correlations, pooled_response, response, verdict

Measure = Callable[[Array, Array], Interval]
OTHER_CAUSES = (len(DIMENSIONS), len(DIMENSIONS) + len(OTHERS) - 1, 2, 3, 4)  # columns


class Cell(NamedTuple):
    """How far a score moved, and what it should have done: as its cause, or as the definition says."""

    score: Interval
    cause: Interval | None
    wanted: str  # signs

    @property
    def verdict(self) -> str:
        """Whether it did."""
        return verdict(self.wanted, self.score.signs)

    def __str__(self) -> str:
        wanted = self.wanted if self.cause is None else f"cause {self.cause}"
        return f"{self.score} {wanted} {self.verdict}"


Rows = dict[str, list[Cell]]


def text_cells(found: Found, column: Mapping[int, int] | None = None, measure: Measure = response) -> Rows:
    """Stimulus -> a cell for each dimension; `column` names another cause for a dimension."""
    rows: Rows = {}
    for name, causes in found.causes.items():
        if name not in INTERVENTIONS:
            rows[name] = []
            for i in range(len(DIMENSIONS)):
                cause = measured(causes, (column or {}).get(i, i), measure)
                rows[name].append(Cell(measured(found.scores[name], i, measure), cause, cause.signs))
    return rows


def intervention_cells(found: Found, measure: Measure = response) -> Rows:
    """The same where the definition says what must follow, or the stock experts on the same picks."""
    rows: Rows = {}
    for name, expected in INTERVENTIONS.items():
        rows[name] = []
        for i, sign in enumerate(expected.signs):
            cause = measured(found.causes[name], i, measure) if sign == "?" else None
            score = measured(found.scores[name], i, measure)
            rows[name].append(Cell(score, cause, sign if cause is None else cause.signs))
    return rows


def measured(pair: Pair, column: int, measure: Measure) -> Interval:
    """Response in one column."""
    return measure(pair.unchanged[..., column], pair.changed[..., column])


def shuffled(found: Found) -> Found:
    """Scores that know nothing: a stimulus's own, given out to its windows by chance."""
    rng = np.random.default_rng(0)
    result = {}
    for name, pair in found.scores.items():
        both = np.stack(pair)
        result[name] = Pair(*rng.permutation(both.reshape(-1, both.shape[-1])).reshape(both.shape))
    return Found(result, found.causes)


def tally(rows: Rows) -> str:
    """How many cells agree, and of each dimension."""

    def counted(cells: list[Cell]) -> str:
        counts = Counter(cell.verdict for cell in cells)
        return f"agree {counts['agree']}, disagree {counts['disagree']}, open {counts['open']} of {len(cells)}"

    cells = [cell for row in rows.values() for cell in row]
    moves = [cell for cell in cells if cell.wanted in ("+", "-")]
    stays = [cell for cell in cells if cell.wanted == "0"]
    parts = [f"{name} {sum(row[i].verdict == 'agree' for row in rows.values())}" for i, name in enumerate(DIMENSIONS)]
    return f"{counted(cells)} ({', '.join(parts)}); should move: {counted(moves)}; should not: {counted(stays)}"


def figures(found: Found) -> Found:
    """The figures before calibration in place of the scores."""
    d = len(DIMENSIONS)
    return Found({name: Pair(*(side[..., d:] for side in pair)) for name, pair in found.scores.items()}, found.causes)


def moves(found: Found, columns: Sequence[int] = range(len(DIMENSIONS))) -> tuple[Array, Array]:
    """Scores and causes of each changed window less those of the unchanged one at its place, [sequence, window, 5]."""
    names = [name for name in found.causes if name not in INTERVENTIONS and name not in AGAINST]
    scores, causes = (
        np.concatenate([kind[name].changed - kind[name].unchanged for name in names], axis=1) for kind in found
    )
    return scores[..., : len(DIMENSIONS)], causes[..., list(columns)]


def levels(found: Found) -> tuple[Array, Array]:
    """Scores and causes of all windows as they are, the unchanged ones once."""
    names = [name for name in found.causes if name not in INTERVENTIONS and name not in AGAINST]
    scores, causes = (
        np.concatenate([kind[names[0]].unchanged, *(kind[name].changed for name in names)], axis=1) for kind in found
    )
    return scores[..., : len(DIMENSIONS)], causes[..., : len(DIMENSIONS)]


def table(title: str, rows: Rows) -> Table:
    """A row for each stimulus."""
    result = Table(title, *DIMENSIONS)
    for name, row in rows.items():
        result.add_row(name, *map(str, row))
    return result


def matrix(title: str, values: Array) -> Table:
    """Of [3, score, cause]: value, low, high."""
    result = Table(title, *(f"cause of {name}" for name in DIMENSIONS))
    for i, name in enumerate(DIMENSIONS):
        result.add_row(name, *(str(Interval(*values[:, i, j].tolist())) for j in range(len(DIMENSIONS))))
    return result


def report(found: Found, console: Console) -> None:
    """Print everything."""
    rows = intervention_cells(found)
    console.print(table("the same text", rows), tally(rows))
    console.print(f"windows pooled: {tally(intervention_cells(found, pooled_response))}\n")
    rows = text_cells(found)
    console.print(table("the text", rows), tally(rows))
    pairs = np.array([(cell.score.value, cell.cause.value) for row in rows.values() for cell in row if cell.cause])
    console.print(
        f"AUC of scores and causes: {np.abs(pairs[:, 0] - pairs[:, 1]).mean():.3f} apart on average, "
        f"Spearman {spearmanr(*pairs.T).statistic:.2f}"
    )
    console.print(f"windows pooled: {tally(text_cells(found, measure=pooled_response))}")
    for number, (name, dimension) in enumerate(OTHERS.items()):
        console.print(f"{name}: {tally(text_cells(found, {dimension: len(DIMENSIONS) + number}))}")
    console.print(f"by chi-squared and ln(1 + count): {tally(text_cells(found, dict(enumerate(OTHER_CAUSES))))}")
    console.print(f"figures before calibration: {tally(text_cells(figures(found)))}")
    console.print(f"shuffled scores: {tally(text_cells(shuffled(found)))}\n")
    for title, values in (
        ("moves", moves(found)),
        ("windows as they are", levels(found)),
        ("moves, by chi-squared and ln(1 + count)", moves(found, OTHER_CAUSES)),
        ("the same of figures before calibration", moves(figures(found), OTHER_CAUSES)),
        ("moves of shuffled scores", moves(shuffled(found))),
    ):
        spearman, partial = correlations(*values)
        console.print(matrix(f"{title}: Spearman", spearman))
        console.print(matrix(f"{title}: partial, given the score's own cause (own: given the others)", partial))
        off = ~np.eye(len(DIMENSIONS), dtype=bool)
        near = ((partial[1] > -NEAR) & (partial[2] < NEAR))[off].sum()
        own = (spearman[0].argmax(axis=1) == np.arange(len(DIMENSIONS))).sum()
        console.print(f"within {NEAR} of 0: {near} of {off.sum()} others' causes; own cause is closest: {own} of 5\n")


@click.command()
@click.option("--sequences", default=24, show_default=True, help="Sequences of each domain.")
@click.option("--warm", default=WARM_SEQUENCES, show_default=True, help="Sequences of each known domain before.")
def main(sequences: int, warm: int) -> None:
    """Print what each change did to each score, and to what the score claims to measure."""
    console = Console()
    console.width = max(console.width, 230)
    report(gathered(responses(sequences, warm, lambda text: click.echo(text, err=True))), console)
    for name, wanted in INTERVENTIONS.items():
        console.print(f"{name}: {wanted.signs} {wanted.why}")


if __name__ == "__main__":
    main()
