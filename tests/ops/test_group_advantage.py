import math
import statistics

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from fastreward.errors import InputError
from fastreward.ops.group_advantage import (
    advantage_shares,
    group_deviations,
    group_scores,
    normalize_then_sum,
    sum_then_normalize,
    weighted_total,
)

NAN = math.nan
SCALES = ["group", "batch", "none"]
AGGREGATIONS = ["sum_then_normalize", "normalize_then_sum"]
VALUES = st.one_of(st.just(NAN), st.floats(-10, 10, width=16))


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def deviation(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else NAN


def finite(values: list[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def oracle(rewards, weights, members, aggregation, scale="group", eps=1e-4):
    """Advantages in plain Python, group by group: `members` lists the rows of each group."""
    count, kinds = len(rewards), len(weights)
    parts = [row[:] for row in rewards]
    if aggregation == "normalize_then_sum":
        for rows in members:
            for k in range(kinds):
                column = finite([rewards[i][k] for i in rows])
                for i in rows:
                    enough = len(column) > 1 and not math.isnan(rewards[i][k])
                    z = (rewards[i][k] - mean(column)) / (deviation(column) + eps) if enough else NAN
                    parts[i][k] = z
    totals = [
        NAN
        if not finite(rewards[i])
        else math.fsum(w * x for w, x in zip(weights, parts[i], strict=True) if not math.isnan(x))
        for i in range(count)
    ]
    whole = [list(range(count))]
    batch = deviation(finite(totals))
    advantages = [0.0] * count
    for rows in members if aggregation == "sum_then_normalize" else whole:
        known = finite([totals[i] for i in rows])
        for i in rows:
            if math.isnan(totals[i]):
                continue
            spread = deviation(known) if aggregation == "sum_then_normalize" and scale == "group" else batch
            divisor = 1.0 if scale == "none" else spread + eps
            value = (totals[i] - mean(known)) / divisor
            advantages[i] = 0.0 if math.isnan(value) else value
    return advantages


def ours(rewards, weights, groups, aggregation, scale):
    if aggregation == "normalize_then_sum":
        return normalize_then_sum(rewards, weights, groups)
    return sum_then_normalize(rewards, weights, groups, scale=scale)


def assert_close(actual: torch.Tensor, expected: torch.Tensor, largest: float, rms: float) -> None:
    error = (actual.double() - expected.double()).abs()
    assert float(error.max()) <= largest
    assert float(error.square().mean().sqrt()) <= rms


# --------------------------------------------------------------------------- TRL's own numbers


SOUND = [[0.3, 1, 1], [0.2, 1, 0], [0.61, 0, 0.1], [0.64, 0, 0.9]]
SILENT = [[NAN, NAN, NAN]]
TWO_GROUPS = {
    "all values": [[0.91, 1, 0], [0.85, 0, -0.5], [0.42, 1, 0.25], [0.77, 0, 0], *SOUND],
    "some missing": [[0.91, NAN, 0], [NAN, 0, NAN], [0.42, 1, 0.25], [0.77, NAN, 0], *SOUND],
    "a row without any": [*SILENT, [0.5, 1, 0.2], [0.42, 0, 0.25], [0.77, 1, 0], *SOUND[:3], *SILENT],
    "a group without one": [[0.91, 1, NAN], [0.85, 0, NAN], [0.42, 1, NAN], [0.77, 0, NAN], *SOUND],
    "one value in a group": [[0.91, NAN, 0.5], [0.85, 0, NAN], [0.42, NAN, NAN], [0.77, NAN, NAN], *SOUND],
    "one row in a group": [*SILENT, *SILENT, [0.3, 1, 0.5], *SILENT, *SOUND],
    "nothing at all": SILENT * 8,
}


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    """A real GRPOTrainer whose three reward functions read `table`, with a policy too small to be slow."""
    pytest.importorskip("trl")
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer

    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "<end>": 2, "<pad>": 3}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<pad>")
    shape = GPT2Config(vocab_size=4, n_positions=16, n_embd=8, n_layer=1, n_head=1, eos_token_id=2)
    table: list[list[float]] = []

    def reading(column: int):
        def reward(completions, **_):
            return [None if math.isnan(row[column]) else row[column] for row in table]

        reward.__name__ = f"reward_{column}"
        return reward

    made = GRPOTrainer(
        GPT2LMHeadModel(shape),
        reward_funcs=[reading(column) for column in range(3)],
        train_dataset=Dataset.from_dict({"prompt": ["a", "b"]}),
        processing_class=tokenizer,
        args=GRPOConfig(
            output_dir=str(tmp_path_factory.mktemp("trl")),
            per_device_train_batch_size=8,
            num_generations=4,
            max_completion_length=2,
            reward_weights=[1.0, 0.5, -2.0],
            report_to=[],
            use_cpu=True,
        ),
    )
    made.model.train()
    made.table = table
    return made


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("name", TWO_GROUPS)
def test_advantages_are_those_that_trl_trains_with(trainer, name, aggregation, scale):
    trainer.table[:] = TWO_GROUPS[name]
    trainer.multi_objective_aggregation, trainer.scale_rewards = aggregation, scale
    inputs = [{"prompt": prompt} for prompt in "aaaabbbb"]
    expected = trainer._generate_and_score_completions(inputs)["advantages"]
    rewards = torch.tensor(TWO_GROUPS[name], dtype=torch.float32)
    actual = ours(rewards, trainer.reward_weights, 4, aggregation, scale)
    assert actual.dtype == expected.dtype == torch.float32
    assert_close(actual, expected, 1e-6, 1e-6)


# --------------------------------------------------------------------------- an oracle in plain Python


@st.composite
def batches(draw, consecutive: bool):
    kinds = draw(st.integers(1, 3))
    if consecutive:
        size, number = draw(st.integers(1, 5)), draw(st.integers(1, 4))
        index = [group for group in range(number) for _ in range(size)]
    else:
        index = draw(st.lists(st.integers(-3, 3), min_size=1, max_size=16))
    rewards = draw(
        st.lists(st.lists(VALUES, min_size=kinds, max_size=kinds), min_size=len(index), max_size=len(index))
    )
    weights = draw(st.lists(st.floats(-2, 2, width=16), min_size=kinds, max_size=kinds))
    members = [[i for i, group in enumerate(index) if group == one] for one in dict.fromkeys(index)]
    return rewards, weights, members, index


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@settings(max_examples=60, deadline=None)
@given(batch=batches(consecutive=False))
def test_groups_may_lie_anywhere_and_differ_in_size(aggregation, scale, batch):
    rewards, weights, members, index = batch
    actual = ours(
        torch.tensor(rewards, dtype=torch.float64),
        torch.tensor(weights, dtype=torch.float64),
        torch.tensor(index),
        aggregation,
        scale,
    )
    given_scale = scale if aggregation == "sum_then_normalize" else "batch"
    expected = torch.tensor(oracle(rewards, weights, members, aggregation, given_scale), dtype=torch.float64)
    # Rounding of 1e-15 on values up to 60 may be divided by eps twice.
    assert_close(actual, expected, 1e-6, 1e-6)
    assert bool(actual.isfinite().all())


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@settings(max_examples=60, deadline=None)
@given(batch=batches(consecutive=True))
def test_consecutive_groups_are_the_same_as_their_index(aggregation, batch):
    rewards, weights, members, index = batch
    tensors = torch.tensor(rewards), torch.tensor(weights)
    by_size = ours(*tensors, len(members[0]), aggregation, "group")
    by_index = ours(*tensors, torch.tensor(index), aggregation, "group")
    assert torch.equal(by_size, by_index)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_groups_that_straddle_ranks_come_out_as_if_they_were_together(aggregation):
    generator = torch.Generator().manual_seed(0)
    rewards, weights = torch.rand((24, 2), generator=generator), torch.tensor([1.0, 0.3])
    together = ours(rewards, weights, 8, aggregation, "group")
    # Two ranks of 12 rows each: the second group lies on both. Gathered in the other order of ranks.
    order = [*range(12, 24), *range(12)]
    index = torch.tensor(order) // 8
    assert_close(ours(rewards[order], weights, index, aggregation, "group"), together[order], 1e-6, 1e-6)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_a_reward_without_any_value_in_a_group_changes_nobodys_advantage_there(aggregation):
    generator = torch.Generator().manual_seed(1)
    known = torch.rand((4, 2), generator=generator)
    with_silent = torch.cat([known, torch.full((4, 1), NAN)], dim=1)
    alone = ours(known, torch.tensor([1.0, 2.0]), 4, aggregation, "group")
    beside = ours(with_silent, torch.tensor([1.0, 2.0, 5.0]), 4, aggregation, "group")
    assert torch.equal(alone, beside)
    assert alone.abs().max() > 0.1


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_a_row_without_any_value_has_no_advantage_and_gives_none_to_others(aggregation):
    rewards = torch.tensor([[0.1, 1.0], [0.9, 0.0], [0.4, 1.0], [NAN, NAN]])
    weights = torch.tensor([1.0, 0.5])
    advantages = ours(rewards, weights, 4, aggregation, "group")
    assert advantages[3] == 0.0
    assert torch.equal(advantages[:3], ours(rewards[:3], weights, 3, aggregation, "group"))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("groups", [1, 4])
def test_equal_rewards_give_no_advantage(aggregation, scale, groups):
    weights = torch.tensor([1.0, 0.7])
    in_fp64 = ours(torch.full((8, 2), 0.9, dtype=torch.float64), weights.double(), groups, aggregation, scale)
    in_fp32 = ours(torch.full((8, 2), 0.9), weights, groups, aggregation, scale)
    assert_close(in_fp64, torch.zeros(8), 1e-11, 1e-11)
    assert_close(in_fp32, torch.zeros(8), 1e-3, 1e-3)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("groups", [3, torch.empty(0, dtype=torch.int64)], ids=["size", "index"])
def test_no_rows_give_no_advantages(aggregation, groups):
    assert ours(torch.empty((0, 2)), torch.ones(2), groups, aggregation, "group").shape == (0,)
    assert group_deviations(torch.empty((0, 2)), groups).tolist() == [0.0, 0.0]
    assert advantage_shares(torch.empty((0, 2)), torch.ones(2), groups).tolist() == [0.0, 0.0]


def test_an_affine_map_of_a_reward_that_stands_alone_changes_nothing_but_the_effect_of_eps():
    rewards = torch.rand((16, 1), dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    one = torch.ones(1, dtype=torch.float64)
    plain = sum_then_normalize(rewards, one, 8)
    mapped = sum_then_normalize((rewards - 0.7) / 0.3, one, 8)
    assert_close(plain, mapped, 1e-3, 1e-3)


def test_the_total_leaves_out_what_has_no_value_and_is_unknown_where_nothing_has():
    rewards = torch.tensor([[1.0, 2.0], [NAN, 2.0], [NAN, NAN]])
    totals = weighted_total(rewards, torch.tensor([1.0, 10.0]))
    assert totals[:2].tolist() == [21.0, 20.0]
    assert totals[2].isnan()


def test_scores_of_a_group_have_mean_zero_and_deviation_one():
    rewards = torch.rand((12, 3), dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    scores = group_scores(rewards, 6).reshape(2, 6, 3)
    assert_close(scores.mean(dim=1), torch.zeros(2, 3), 1e-12, 1e-12)
    assert_close(scores.std(dim=1), torch.ones(2, 3), 1e-3, 1e-3)  # eps takes a little


def test_deviations_are_the_mean_over_groups_of_those_that_can_be_measured():
    rewards = torch.tensor([[1.0, NAN], [3.0, 5.0], [2.0, NAN], [2.0, NAN], [7.0, 1.0], [NAN, 4.0]])
    expected = [statistics.fmean([statistics.stdev([1, 3]), 0.0]), statistics.stdev([1, 4])]
    assert group_deviations(rewards, 2).tolist() == pytest.approx(expected, abs=1e-6)


# --------------------------------------------------------------------------- shares


@settings(max_examples=80, deadline=None)
@given(batch=batches(consecutive=False))
def test_shares_sum_to_one_unless_nothing_differs(batch):
    rewards, weights, members, index = batch
    shares = advantage_shares(
        torch.tensor(rewards, dtype=torch.float64),
        torch.tensor(weights, dtype=torch.float64),
        torch.tensor(index),
    )
    totals = weighted_total(
        torch.tensor(rewards, dtype=torch.float64), torch.tensor(weights, dtype=torch.float64)
    ).tolist()
    groups = [finite([totals[i] for i in rows]) for rows in members]
    spread = max((max(group) - min(group) for group in groups if group), default=0.0)
    assert bool(shares.isfinite().all())
    if spread > 1e-6:
        assert float(shares.sum()) == pytest.approx(1.0, abs=1e-6)


def test_shares_are_the_covariance_of_the_part_with_the_whole():
    rewards = torch.rand((8, 2), dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    weights = torch.tensor([1.0, 3.0], dtype=torch.float64)
    parts = rewards * weights
    covariance = torch.cov(torch.stack([parts[:, 0], parts[:, 1], parts.sum(dim=1)]))
    expected = covariance[:2, 2] / covariance[2, 2]
    assert_close(advantage_shares(rewards, weights, 8), expected, 1e-12, 1e-12)


def test_shares_of_several_groups_are_the_covariance_with_the_advantages_themselves():
    generator = torch.Generator().manual_seed(6)
    spreads = torch.tensor([0.01, 1.0, 5.0], dtype=torch.float64).repeat_interleave(8)[:, None]
    rewards = spreads * torch.rand((24, 2), dtype=torch.float64, generator=generator)
    weights = torch.tensor([1.0, 0.5], dtype=torch.float64)
    for scale in SCALES:
        whole = sum_then_normalize(rewards, weights, 8, scale=scale).reshape(3, 8, 1)
        parts = (rewards * weights).reshape(3, 8, 2)
        totals = parts.sum(dim=2, keepdim=True)
        by_group = totals.std(dim=1, keepdim=True) + 1e-4
        divisor = {"group": by_group, "batch": totals.std() + 1e-4, "none": 1.0}[scale]
        # The whole has mean 0 in each group, so that the parts' own means fall out of the covariance.
        expected = (parts / divisor * whole).sum(dim=(0, 1)) / whole.square().sum()
        assert_close(advantage_shares(rewards, weights, 8, scale=scale), expected, 1e-12, 1e-12)


def test_where_all_answers_of_a_group_are_right_the_semantic_reward_has_the_whole_share_there():
    generator = torch.Generator().manual_seed(7)
    cosine = 0.8 + 0.02 * torch.randn((16, 1), generator=generator, dtype=torch.float64)
    right = torch.tensor([1.0, 0.0] * 4 + [1.0] * 8, dtype=torch.float64)[:, None]
    rewards, weights = torch.cat([cosine, right], dim=1), torch.ones(2, dtype=torch.float64)
    assert 0.4 < advantage_shares(rewards, weights, 8)[0] < 0.6
    assert advantage_shares(rewards, weights, 8, scale="batch")[0] < 0.1


def test_a_semantic_reward_beside_a_right_or_wrong_one_has_a_small_share_until_it_is_normalised():
    generator = torch.Generator().manual_seed(5)
    cosine = 0.8 + 0.02 * torch.randn((64, 1), generator=generator, dtype=torch.float64)
    right = (torch.rand((64, 1), generator=generator, dtype=torch.float64) < 0.5).double()
    rewards, weights = torch.cat([cosine, right], dim=1), torch.ones(2, dtype=torch.float64)
    assert advantage_shares(rewards, weights, 8)[0] < 0.05
    assert 0.3 < advantage_shares(group_scores(rewards, 8), weights, 8)[0] < 0.7


def test_a_reward_that_pulls_against_the_others_has_a_negative_share():
    rewards = torch.tensor([[1.0, 0.0], [0.0, 0.3]])
    shares = advantage_shares(rewards, torch.ones(2), 2)
    assert shares[1] < 0 < 1 < shares[0]


def test_a_reward_that_is_missing_somewhere_counts_as_it_does_in_the_total():
    rewards = torch.tensor([[1.0, NAN], [1.0, 1.0], [NAN, NAN]], dtype=torch.float64)
    shares = advantage_shares(rewards, torch.ones(2, dtype=torch.float64), 3)
    assert shares.tolist() == pytest.approx([0.0, 1.0], abs=1e-12)


# --------------------------------------------------------------------------- bad input


GOOD = (torch.zeros((4, 2)), torch.ones(2), 2)


@pytest.mark.parametrize("function", [sum_then_normalize, normalize_then_sum, advantage_shares])
@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        (0, torch.zeros(4), "rewards"),
        (0, torch.zeros((4, 0)), "rewards"),
        (0, torch.zeros((4, 2), dtype=torch.bfloat16), "fp32 or fp64"),
        (0, torch.zeros((4, 2), dtype=torch.int64), "fp32 or fp64"),
        (0, torch.full((4, 2), math.inf), "finite rewards"),
        (1, torch.ones(3), r"weights \[2\]"),
        (1, torch.ones(2, dtype=torch.int64), "floating"),
        (1, torch.tensor([1.0, NAN]), "finite weights"),
        (2, 3, "divide 4 rows"),
        (2, 0, "divide 4 rows"),
        (2, -2, "divide 4 rows"),
        (2, True, "divide 4 rows"),
        (2, 2.0, "divide 4 rows"),
        (2, torch.zeros(3, dtype=torch.int64), r"groups \[4\] of integers"),
        (2, torch.zeros(4), "integers"),
        (2, torch.zeros(4, dtype=torch.bool), "integers"),
    ],
)
def test_bad_input_is_named(function, place, value, expected):
    arguments = list(GOOD)
    arguments[place] = value
    with pytest.raises(InputError, match=expected):
        function(*arguments)


def test_an_unknown_scale_is_named():
    for function in (sum_then_normalize, advantage_shares):
        with pytest.raises(InputError, match="'group', 'batch' or 'none'"):
            function(*GOOD, scale="std")
