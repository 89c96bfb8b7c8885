"""The rule of sweeps, by hand: scores on validation are given, and who wins is read off them."""

import polars as pl
import pytest

from sdcore.analysis import trials
from sdcore.config import Experiment, load_experiment
from sdcore.store.schema import TABLES
from tests.helpers.paths import QUICKSTART


def experiment(*lists, maximum=8):
    overrides = [f"conditions.grpo.{each}" for each in lists]
    return load_experiment(QUICKSTART, [*overrides, f"sweep.max_trials={maximum}"])


RATES = experiment("learning_rate=[2e-4, 4e-4, 8e-4]")


def scores(known: Experiment, *marks, seeds=1):
    """Validation scores of the trials in order: for each its checkpoints', the same per seed.

    A list of lists has the checkpoints of each seed.
    """
    rows = [
        {
            "condition": name, "seed": seed, "round": round_, "split": "validation",
            "avg_at_k": value, "sampled_tokens": 100 * round_,
        }
        for name, given in zip(known.trials, marks, strict=True)
        for seed, values in enumerate(given if isinstance(given[0], list) else [given] * seeds)
        for round_, value in enumerate(values, 1)
    ]  # fmt: skip
    schema = {"condition": pl.String, "seed": pl.Int64, "round": pl.Int64, "split": pl.String}
    return pl.DataFrame(rows, schema | {"avg_at_k": pl.Float64, "sampled_tokens": pl.Int64})


def search(known, *marks, **more):
    (found,) = trials.searches(known, scores(known, *marks, **more))
    return found


def value(found):
    return tuple(found.winner.trial.values.values())


def test_the_best_of_a_trials_checkpoints_counts():
    # 8e-4 is best at the last checkpoint, 4e-4 at the first, and 0.6 is the most of all.
    found = search(RATES, [0.1, 0.2], [0.6, 0.3], [0.2, 0.5])
    assert value(found) == (4e-4,) and found.further is None and found.edges == ()
    assert [each.score for each in found.outcomes] == [0.2, 0.6, 0.5]
    assert found.winner.sampled_tokens == 200


def test_each_seed_has_its_own_best_checkpoint_and_their_mean_counts():
    # 2e-4: (0.9 + 0.1) / 2; 4e-4: (0.6 + 0.5) / 2 = 0.55; 8e-4: (0.5 + 0.5) / 2.
    marks = [[0.9, 0.0], [0.1, 0.0]], [[0.6, 0.1], [0.1, 0.5]], [[0.5, 0.5], [0.5, 0.5]]
    found = search(RATES, *marks)
    assert value(found) == (4e-4,)
    assert [each.score for each in found.outcomes] == pytest.approx([0.5, 0.55, 0.5])


def test_a_tie_goes_to_the_smaller_rate_wherever_it_stands_in_its_list():
    known = experiment("learning_rate=[8e-4, 4e-4, 2e-4, 1e-4]")
    found = search(known, [0.5], [0.5], [0.5], [0.4])
    assert value(found) == (2e-4,)
    # 0.1 + 0.2 is 0.30000000000000004, which is no better than 0.3.
    marks = [[0.3], [0.3]], [[0.1 + 0.2], [0.3]], [[0.0], [0.0]]
    assert value(search(RATES, *marks)) == (2e-4,)


def test_a_tie_of_words_goes_to_the_first_and_words_have_no_edge():
    known = experiment("normalise=['token', 'sequence']")
    found = search(known, [0.5], [0.5])
    assert value(found) == ("token",) and found.edges == () and found.further is None
    assert value(search(known, [0.4], [0.5])) == ("sequence",)


def test_in_a_grid_the_first_setting_decides_a_tie_before_the_second():
    known = experiment("learning_rate=[2e-4, 4e-4]", "clip_low=[0.1, 0.2]")
    # In order (2e-4, .1), (2e-4, .2), (4e-4, .1), (4e-4, .2): the middle two are tied.
    assert value(search(known, [0.1], [0.5], [0.5], [0.1])) == (2e-4, 0.2)


@pytest.mark.parametrize(
    ("marks", "name", "rate"),
    [
        (([0.1], [0.2], [0.3]), "grpo-learning_rate-0.0016", 1.6e-3),
        (([0.3], [0.2], [0.1]), "grpo-learning_rate-0.0001", 1e-4),
    ],
)
def test_a_grid_goes_on_by_its_factor_beyond_the_edge_with_the_best(marks, name, rate):
    found = search(RATES, *marks)
    assert {each: trial.values for each, trial in found.further.items()} == {
        name: {"learning_rate": rate}
    }
    assert found.further[name].extension == 1
    # It goes on again while the new value is the best one, and ends where it is not.
    grown = RATES.with_trials(found.further)
    again = search(grown, *marks, [0.9])
    (second,) = again.further.values()
    assert second.extension == 2
    assert second.values["learning_rate"] == (3.2e-3 if rate > 8e-4 else 5e-5)
    assert search(grown, *marks, [0.0]).further is None


def test_a_grid_with_a_value_beyond_the_edge_stays_a_grid():
    known = experiment("learning_rate=[2e-4, 4e-4]", "normalise=['token', 'sequence']")
    found = search(known, [0.1], [0.1], [0.1], [0.5])
    assert [trial.values for trial in found.further.values()] == [
        {"learning_rate": 8e-4, "normalise": "token"},
        {"learning_rate": 8e-4, "normalise": "sequence"},
    ]


def test_it_ends_at_the_stated_maximum_and_says_so():
    known = experiment("learning_rate=[2e-4, 4e-4]", maximum=2)
    found = search(known, [0.1], [0.5])
    assert found.further is None and value(found) == (4e-4,)
    text = (
        "learning_rate = 0.0004 is the largest value tried; "
        "sweep.max_trials = 2 allows no further one"
    )
    assert [str(edge) for edge in found.edges] == [text]
    rows = trials.table(known, [found])
    assert rows["edge"].to_list() == [None, text]
    assert rows["why"].to_list() == [
        "40.0 points behind grpo-learning_rate-0.0004 on validation",
        f"best on validation; at an edge: {text}",
    ]
    assert ("grpo", f"the chosen trial, grpo-learning_rate-0.0004, is at an edge: {text}") in list(
        trials.warnings(known, rows)
    )


def test_it_ends_where_the_setting_ends_and_goes_on_at_another_edge():
    # clip_low is below 1: 0.45, 0.9 cannot go on to 1.8. The rate can.
    known = experiment("clip_low=[0.45, 0.9]")
    (edge,) = search(known, [0.1], [0.5]).edges
    assert "clip_low = 0.9 is the largest value tried; the next one is not allowed" in str(edge)
    known = experiment("clip_low=[0.45, 0.9]", "learning_rate=[1e-4, 2e-4]")
    found = search(known, [0.1], [0.1], [0.1], [0.5])
    assert {trial.values["learning_rate"] for trial in found.further.values()} == {4e-4}


def test_what_trained_nothing_or_under_fewer_seeds_does_not_win():
    two = [[0.2], [0.2]], [[0.3], [0.3]], [[0.9]]
    found = search(RATES, *two)
    assert value(found) == (4e-4,)
    rows = trials.table(RATES, [found])
    assert rows["why"][2] == "a checkpoint to choose under 1 of 2 seeds"
    only = scores(RATES, [0.2], [0.2], [0.2]).clear()
    (nothing,) = trials.searches(RATES, only)
    assert nothing.winner is None and nothing.further is None
    rows = trials.table(RATES, [nothing])
    (why,) = set(rows["why"])
    assert why.startswith("no checkpoint to choose") and not rows["chosen"].any()
    assert trials.losers(rows) == set()  # all are named as what trained nothing


def test_scores_on_test_choose_nothing():
    of_test = scores(RATES, [0.0], [0.0], [1.0]).with_columns(split=pl.lit("test"))
    both = pl.concat([scores(RATES, [0.1], [0.5], [0.2]), of_test])
    (found,) = trials.searches(RATES, both)
    assert value(found) == (4e-4,)


def test_fewer_trials_than_another_condition_are_an_unequal_search_budget():
    known = load_experiment(
        QUICKSTART,
        [
            "conditions.grpo.learning_rate=[1e-4, 2e-4, 4e-4]",
            "conditions.reference.learning_rate=[2e-4, 4e-4]",
        ],
    )
    marks = [0.1], [0.5], [0.1], [0.5], [0.1]
    found = trials.searches(known, scores(known, *marks))
    rows = trials.table(known, found)
    told = dict(trials.warnings(known, rows.with_columns(edge=pl.lit(None, pl.String))))
    assert told == {
        "reference": "2 trials, grpo has 3: an unequal search budget",
        "step_aligned": "1 trial, grpo has 3: an unequal search budget",
    }
    equal = load_experiment("quickstart-rates")
    marks = [[0.1], [0.5], [0.1], [0.1]] * 3
    rows = trials.table(equal, trials.searches(equal, scores(equal, *marks)))
    assert list(trials.warnings(equal, rows)) == []
    assert trials.losers(rows) == set(rows.filter(~pl.col("chosen"))["trial"])


def test_trials_with_other_groups_sample_other_numbers_of_tokens_and_that_is_said():
    known = experiment("group_size=[4, 8, 16]")
    rows = trials.table(known, [search(known, [0.1], [0.5], [0.1])])
    assert "sample 4, 8, 16 rollouts per question" in dict(trials.warnings(known, rows))["grpo"]


def test_before_any_choice_there_is_no_warning():
    assert list(trials.warnings(RATES, TABLES["trials"].frame([]))) == []
