from dataclasses import replace
from itertools import islice

import pytest
import torch

from sdcore.config import ModelConfig, SamplingConfig, load_experiment
from sdcore.engines import Request
from sdcore.engines.transformers import TransformersEngine
from sdcore.models.hub import TINY_SOLVER
from sdcore.models.policies import end_ids, load_policy, load_tokenizer
from sdcore.problems.arithmetic import ORDERS, STYLES, generate_problems, reference_solution, solve
from sdcore.tiny_solver.build import Recipe, build, hinted_prompt, train
from sdcore.tiny_solver.build import _tensors as tensors
from sdcore.tiny_solver.card import measure
from sdcore.tiny_solver.corpus import documents, missing_facts
from sdcore.tiny_solver.tokenizer import PROMPTS, TAGS, build_tokenizer
from sdcore.traces import render_trace
from tests.helpers.paths import QUICKSTART

SHIPPED = TINY_SOLVER
SMALL = Recipe(steps=3, plain=4, aligned=2, reference=2, warmup=1, threads=1,
               test_problems=4, test_samples=2)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def texts():
    for problem in generate_problems(40, seed=2, holdout=True):
        yield problem.question
        yield reference_solution(problem)
        for order in ORDERS:
            for style in STYLES:
                yield render_trace(solve(problem, order, style), str(problem.answer))


def test_texts_are_tokenised_without_loss_and_without_unknowns(tokenizer):
    for text in texts():
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert tokenizer.unk_token_id not in ids
        assert len(ids) <= 50


def test_any_ascii_text_comes_back(tokenizer):
    text = "".join(map(chr, range(32, 127))) + "\n two  spaces , and 's  <step_9> \n"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_tags_are_single_ordinary_tokens(tokenizer):
    assert not set(TAGS) & set(tokenizer.all_special_tokens)
    assert [len(tokenizer.encode(tag)) for tag in TAGS] == [1] * 10


def test_prompts_are_those_of_the_chat_template(tokenizer):
    question, hint = "Compute 47+23-31-12.", "<step_1>47+23=70</step_1>"
    plain, hinted = (hinted_prompt(tokenizer, question, given) for given in (None, hint))
    assert tokenizer.decode(plain) == f"<bos><user>{question}<assistant>"
    assert tokenizer.decode(hinted) == f"<bos><user>Hint: {hint}\n{question}<assistant>"


def test_the_quickstart_asks_as_in_pre_training():
    assert load_experiment(QUICKSTART).prompts == PROMPTS


def test_only_the_trace_is_learnt(tokenizer):
    batch = list(islice(documents("aligned", missing_facts(0.4, 0), seed=0), 8))
    assert any(document.trace[1] for document in batch)  # one that slips
    ids_NT, learnt_NT = tensors(tokenizer, batch)
    for document, ids_T, learnt_T in zip(batch, ids_NT, learnt_NT):
        before, wrong, after = document.trace
        assert tokenizer.decode(ids_T[learnt_T]) == before + after + "<eos>"
        assert f"<assistant>{before}{wrong}{after}<eos>" in tokenizer.decode(ids_T)


def test_training_is_reproducible_and_seeded(tokenizer):
    def weights(recipe):
        return train(tokenizer, recipe, lambda step, losses: None).state_dict()

    first, again = weights(SMALL), weights(SMALL)
    other = weights(replace(SMALL, seed=1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_training_lowers_the_loss(tokenizer):
    losses = []
    train(tokenizer, replace(SMALL, steps=20), lambda step, now: losses.append(now["loss_plain"]))
    # untrained, each of 132 tokens is about as likely: ln 132 = 4.9
    assert losses[0] > 4.5
    assert losses[-1] < 3.5


def test_build_writes_a_model_that_loads_and_a_card(tmp_path):
    threads, steps = torch.get_num_threads(), []
    measures = build(tmp_path, SMALL, lambda step, losses: steps.append(step))
    assert steps == [1, 2, 3]
    assert torch.get_num_threads() == threads
    model = load_policy(tmp_path, ModelConfig(name=str(tmp_path), device="cpu"))
    assert model.num_parameters() == measures["weights"]
    assert load_tokenizer(tmp_path).chat_template == build_tokenizer().chat_template
    assert "On 4 held-out problems × 2 samples" in (tmp_path / "README.md").read_text("utf-8")


def test_the_shipped_tokenizer_is_the_one_that_is_built(tokenizer):
    shipped = load_tokenizer(SHIPPED)
    assert shipped.get_vocab() == tokenizer.get_vocab()
    assert shipped.chat_template == tokenizer.chat_template
    assert all(shipped.encode(text) == tokenizer.encode(text) for text in texts())


def test_the_shipped_weights_are_small():
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) < 8_000_000


def test_the_shipped_solver_ends_its_traces_and_writes_no_other_special_token(tokenizer):
    model = load_policy(SHIPPED, ModelConfig(name="builtin:tiny-solver", device="cpu"))
    engine = TransformersEngine(model, end_ids=end_ids(SHIPPED))
    prompts = [
        hinted_prompt(tokenizer, problem.question, hint)
        for problem in generate_problems(60, seed=8, holdout=True)
        for hint in (None, reference_solution(problem))
    ]
    requests = [Request(prompt, seed) for seed, prompt in enumerate(prompts)]
    drawn = engine.generate(requests, SamplingConfig(max_new_tokens=64))
    stopped = [c.token_ids[-1] == tokenizer.eos_token_id for c in drawn]
    special = set(tokenizer.all_special_ids)
    assert sum(stopped) >= 0.98 * len(drawn)
    # At temperature 1 the tail of the distribution shows now and then.
    assert sum(bool(special & set(c.token_ids[:-1])) for c in drawn) <= 0.02 * len(drawn)


def test_the_shipped_solver_is_weak_alone_and_strong_with_a_hint(tokenizer):
    model = load_policy(SHIPPED, ModelConfig(name="builtin:tiny-solver", device="cpu"))
    problems = generate_problems(60, seed=9, holdout=True)
    measures = measure(model, tokenizer, problems, 4, missing_facts(Recipe.missing, Recipe.seed))
    # 240 samples of 60 problems: each share is known to about 0.03, so the bounds are that far
    # below what the model card promises.
    assert 0.15 < measures["avg"] < 0.45
    assert measures["reference"] > 0.8
    assert measures["aligned"] > 0.85
    assert measures["format"] > 0.95
    assert measures["taught"] > 0.9 > 0.5 > measures["untaught"]
