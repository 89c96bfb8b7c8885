from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy.stats import chisquare
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from sdcore import config as settings
from sdcore.config import SamplingConfig
from sdcore.engines import Completion, Engine, Request, Served
from sdcore.engines.transformers import BLOCK, TransformersEngine, draw, rounded_down
from sdcore.errors import EngineError, ModelError
from sdcore.models import adapters, policies
from sdcore.testing import ScriptedEngine
from tests.helpers.tiny import gpt2, save

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

VOCABULARY, END = 13, 1
SHAPE = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    initializer_range=0.3,  # far from uniform, so that a wrong context changes the tokens
)
PROMPTS = ((5, 6, 7), (3, 9, 4, 8, 2, 11, 10), (12,), (5, 6, 7, 2, 2))


def llama(seed: int = 0, **shape: object) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**(SHAPE | shape))).eval()


def engine(model=None, end_ids=(END,)) -> TransformersEngine:
    return TransformersEngine(model or llama(), end_ids=end_ids)


def live(policy) -> Served:
    return Served("live", None, Path("base"), live=policy)


def requests(samples: int = 3) -> list[Request]:
    return [Request(p, 100 * i + n) for n in range(samples) for i, p in enumerate(PROMPTS)]


def reference_logprobs(model, prompt_ids, token_ids) -> torch.Tensor:
    """Log-prob of each response token from one plain forward pass without cache or padding."""
    ids = torch.tensor([[*prompt_ids, *token_ids]])
    with torch.no_grad():
        logprobs = model(ids, use_cache=False).logits[0].log_softmax(-1)
    positions = torch.arange(len(prompt_ids) - 1, ids.shape[1] - 1)
    return logprobs[positions, ids[0, len(prompt_ids) :]]


def sliding_window_mistral() -> MistralForCausalLM:
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=4)).eval()


UNEVEN = [Request(PROMPTS[0], seed) for seed in range(9)] + requests(1)


@pytest.mark.parametrize("build", [llama, sliding_window_mistral])
@pytest.mark.parametrize("asked", [requests(3), UNEVEN], ids=["even", "uneven"])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_logprobs_are_those_of_a_plain_forward_pass(build, asked, temperature):
    sampling = SamplingConfig(temperature=temperature, top_p=0.9, max_new_tokens=40)
    completions = engine(build()).generate(asked, sampling)
    for request, completion in zip(asked, completions, strict=True):
        expected = reference_logprobs(build(), request.prompt_ids, completion.token_ids)
        assert torch.tensor(completion.logprobs).sub(expected).abs().max() < 1e-4


def test_greedy_equals_generate():
    model = llama()
    sampling = SamplingConfig(temperature=0, max_new_tokens=25)
    for end in range(0, VOCABULARY, 3):  # some of them end early, some never
        ends = [end, end + 1][: 1 + end % 2]  # models may have several end tokens
        completions = engine(end_ids=ends).generate(requests(1), sampling)
        for prompt, completion in zip(PROMPTS, completions, strict=True):
            ids = torch.tensor([prompt])
            output = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=25,
                eos_token_id=ends,
                pad_token_id=0,
            )
            assert completion.token_ids == tuple(output[0, len(prompt) :].tolist())


def test_samples_follow_the_softmax():
    # a flatter model than elsewhere: chi-square wants at least five expected draws a token
    model, prompt, draws = llama(initializer_range=0.05), PROMPTS[1], 4000
    sampling = SamplingConfig(temperature=1.3, max_new_tokens=1)
    completions = engine(model).generate([Request(prompt, seed) for seed in range(draws)], sampling)
    counts = torch.zeros(VOCABULARY)
    for completion in completions:
        counts[completion.token_ids[0]] += 1
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0, -1].double()
    expected = draws * (logits / 1.3).softmax(-1)
    assert expected.min() > 5
    assert chisquare(counts.numpy(), expected.numpy()).pvalue > 0.001


def test_a_sample_depends_on_its_seed_and_not_on_its_company():
    sampling = SamplingConfig(max_new_tokens=30)
    together = engine().generate(requests(4), sampling)
    for request, completion in zip(requests(4), together, strict=True):
        assert engine().generate([request], sampling)[0].token_ids == completion.token_ids
    assert len({c.token_ids for c in together[:: len(PROMPTS)]}) == 4  # four seeds, one prompt


def test_batches_and_order_do_not_change_tokens(monkeypatch):
    asked = requests(4)
    whole = engine().generate(asked, SamplingConfig(max_new_tokens=30))
    cut = engine().generate(asked, SamplingConfig(max_new_tokens=30, batch_size=3))
    turned = engine().generate(asked[::-1], SamplingConfig(max_new_tokens=30))[::-1]
    monkeypatch.setattr("sdcore.engines.transformers.MEMORY", 1)
    tight = engine().generate(asked, SamplingConfig(max_new_tokens=30))
    tokens = [completion.token_ids for completion in whole]
    assert [c.token_ids for c in cut] == [c.token_ids for c in tight] == tokens
    assert [c.token_ids for c in turned] == tokens


def test_rows_on_a_gpu_are_a_power_of_two():
    assert [rounded_down(rows) for rows in (0, 1, 16, 31, 1000)] == [0, 1, 16, 16, 512]


def test_the_same_requests_give_the_same_bits():
    sampling = SamplingConfig(max_new_tokens=30)
    assert engine().generate(requests(), sampling) == engine().generate(requests(), sampling)


def test_finish_reasons():
    completions = engine().generate(requests(40), SamplingConfig(max_new_tokens=8))
    stopped = [c for c in completions if c.finish_reason == "stop"]
    cut = [c for c in completions if c.finish_reason == "length"]
    assert stopped and cut and len(stopped) + len(cut) == len(completions)
    assert all(c.token_ids[-1] == END and c.token_ids.count(END) == 1 for c in stopped)
    assert all(len(c.token_ids) == 8 and END not in c.token_ids for c in cut)
    assert all(len(c.logprobs) == len(c.token_ids) for c in completions)


def test_each_prompt_is_computed_once_and_finished_rows_leave():
    model, shapes = llama(), []
    model.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))
    asked = requests(40)
    completions = engine(model).generate(asked, SamplingConfig(max_new_tokens=60))
    assert shapes[0] == (len(PROMPTS), max(map(len, PROMPTS)))
    rows = [rows for rows, _ in shapes[1:]]
    assert rows[0] == len(asked) and rows == sorted(rows, reverse=True)
    for step, computed in enumerate(rows, start=1):
        running = sum(len(c.token_ids) > step for c in completions)
        assert running <= computed < running / 0.8 or running == computed


def test_progress_adds_up_to_all_samples_and_all_tokens():
    told = []
    sampling = SamplingConfig(max_new_tokens=8, batch_size=50)
    completions = engine().generate(requests(40), sampling, lambda *news: told.append(news))
    assert {c.finish_reason for c in completions} == {"stop", "length"}
    assert tuple(map(sum, zip(*told, strict=True))) == (
        len(completions), sum(len(c.token_ids) for c in completions),
    )  # fmt: skip
    assert len(told) > len(completions) / 50  # more often than once a batch


def test_requests_that_cannot_be_served_are_refused():
    with pytest.raises(EngineError, match="empty"):
        engine().generate([Request((), 0)], SamplingConfig())
    with pytest.raises(EngineError, match="a token that the model does not have"):
        engine().generate([Request((3, 10**6), 0)], SamplingConfig())
    with pytest.raises(EngineError, match=r"7 prompt tokens \+ 122 new tokens"):
        engine().generate([Request(PROMPTS[1], 0)], SamplingConfig(max_new_tokens=122))
    assert engine().generate([], SamplingConfig()) == []


def test_top_p_keeps_the_smallest_set_that_reaches_p():
    # 0.5 + 0.3 reaches 0.8, so the third and fourth tokens are out, and 0.5 : 0.3 become
    # 0.625 : 0.375; sorted by likelihood the tokens are 2, 0, 3, 1
    logits = torch.tensor([0.3, 0.05, 0.5, 0.15]).log().expand(4, 4)
    uniforms = torch.tensor([0.0, 0.37, 0.38, 0.999], dtype=torch.float64)
    token, logprob = draw(logits, uniforms, SamplingConfig(top_p=0.75))
    assert token.tolist() == [0, 0, 2, 2]
    assert logprob.exp().tolist() == pytest.approx([0.3, 0.3, 0.5, 0.5])
    token, _ = draw(logits, uniforms, SamplingConfig(top_p=1e-9))
    assert token.tolist() == [2, 2, 2, 2]


def test_draw_never_takes_a_token_of_probability_zero():
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]]).expand(2, 4)
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert draw(logits, ends, SamplingConfig())[0].tolist() == [1, 2]


@pytest.mark.parametrize("vocabulary", [5, BLOCK, 3 * BLOCK + 7])
def test_draw_inverts_the_cumulative_distribution(vocabulary):
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(400, vocabulary, generator=generator)
    uniforms = torch.rand(400, generator=generator, dtype=torch.float64)
    tokens = draw(logits, uniforms, SamplingConfig(temperature=1.3))[0]
    above = (logits.double() / 1.3).softmax(-1).cumsum(-1)
    assert (above.gather(1, tokens[:, None])[:, 0] > uniforms - 1e-6).all()
    below = above.gather(1, (tokens - 1).clamp(min=0)[:, None])[:, 0]
    assert (below.where(tokens > 0, 0) <= uniforms + 1e-6).all()


@pytest.mark.parametrize("logit", [torch.nan, torch.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_refused(logit, temperature):
    model = llama()
    with torch.no_grad():
        model.lm_head.weight[3] = logit
    sampling = SamplingConfig(temperature=temperature, max_new_tokens=3)
    with pytest.raises(EngineError, match="not finite"):
        engine(model).generate(requests(), sampling)


def test_draw_at_temperature_zero_is_greedy():
    token, logprob = draw(
        torch.tensor([[0.0, 1.0, -1.0]]),
        torch.tensor([0.999], dtype=torch.float64),
        SamplingConfig(temperature=0),
    )
    # e^1 / (1 + e + 1/e) = 2.71828 / 4.08616 = 0.66524
    assert token.tolist() == [1] and logprob.exp().item() == pytest.approx(0.66524, abs=1e-5)


def adapted(seed: int):
    torch.manual_seed(seed)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"])
    policy = get_peft_model(llama(), lora)
    for name, weight in policy.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.2)
    return policy.eval()


def test_load_adds_the_adapter():
    policy, sampler = adapted(1), engine()
    before = sampler.generate(requests(), SamplingConfig(max_new_tokens=20))
    sampler.load(live(policy))
    after = sampler.generate(requests(), SamplingConfig(max_new_tokens=20))
    assert [c.token_ids for c in after] != [c.token_ids for c in before]
    for request, completion in zip(requests(), after, strict=True):
        expected = reference_logprobs(policy, request.prompt_ids, completion.token_ids)
        assert torch.tensor(completion.logprobs).sub(expected).abs().max() < 1e-4
    with policy.disable_adapter():
        sampler.load(live(policy))
    assert sampler.generate(requests(), SamplingConfig(max_new_tokens=20)) == before


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")  # PEFT sets it for GPT-2's layers
def test_load_adds_the_adapter_of_layers_whose_weights_are_transposed():
    lora = settings.LoraConfig(rank=4, alpha=8, targets=("c_attn", "c_fc", "c_proj"))
    policy, sampler = policies.attach_lora(gpt2(), lora, 0), engine(gpt2())
    sampler.load(live(policy))
    assert sampler.update_share is None  # B is zero
    for name, weight in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    sampler.load(live(policy))
    assert sampler.update_share == pytest.approx(1)
    drawn = sampler.generate(requests(), SamplingConfig(max_new_tokens=20))
    for request, completion in zip(requests(), drawn, strict=True):
        expected = reference_logprobs(policy, request.prompt_ids, completion.token_ids)
        assert torch.tensor(completion.logprobs).sub(expected).abs().max() < 1e-4


def tuned(scale: float, dtype=torch.float32):
    """A float32 adapter on a model of this type, its B noise of this size."""
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"])
    torch.manual_seed(3)
    policy = get_peft_model(llama().to(dtype), lora)
    for name, weight in policy.named_parameters():
        if "lora_" in name:
            weight.data = weight.data.float()
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=scale)
    return policy.eval()


@pytest.mark.parametrize("scale", [5e-6, 1e-3])
@pytest.mark.parametrize(("dtype", "most_lost"), [(torch.float32, 1e-6), (torch.bfloat16, 0.01)])
def test_the_sampler_holds_small_updates(scale, dtype, most_lost):
    policy, sampler = tuned(scale, dtype), engine(llama().to(dtype))
    sampler.load(live(policy))
    added = total = 0.0
    for name, update in adapters.updates_of(policy).items():
        layer = sampler.model.get_submodule(name)
        with torch.no_grad():
            delta = update.b_OR @ update.a_RI
            layer.weight.zero_()  # what is left of its output is what was added
            held = layer(torch.eye(layer.in_features, dtype=dtype)).T.float()
        added += float((held * delta).sum())
        total += float(delta.square().sum())
    assert added / total == pytest.approx(1, abs=most_lost)
    assert sampler.update_share == pytest.approx(added / total, abs=most_lost)
    sampler.load(live(llama().to(dtype)))
    assert sampler.update_share is None


def test_bfloat16_log_probs_are_those_of_the_adapted_policy():
    policy = tuned(0.2, torch.bfloat16)
    sampler = engine(llama().bfloat16())
    sampler.load(live(policy))
    drawn = sampler.generate(requests(), SamplingConfig(max_new_tokens=20))
    for request, completion in zip(requests(), drawn, strict=True):
        with torch.autocast("cpu", torch.bfloat16):
            expected = reference_logprobs(policy, request.prompt_ids, completion.token_ids)
        assert torch.tensor(completion.logprobs).sub(expected).abs().mean() < 0.05


def test_load_copies_and_leaves_the_policy_alone():
    policy, sampler = llama(seed=2), engine()
    sampler.load(live(policy))
    before = sampler.generate(requests(), SamplingConfig(max_new_tokens=20))
    with torch.no_grad():
        for weight in policy.parameters():
            weight.zero_()
    assert sampler.generate(requests(), SamplingConfig(max_new_tokens=20)) == before


def test_load_refuses_another_architecture():
    with pytest.raises(ModelError, match="does not fit"):
        engine().load(live(llama(num_hidden_layers=1)))
    with pytest.raises(ModelError, match="does not fit"):
        engine().load(live(llama(intermediate_size=64)))


def test_scripted_engine_answers_from_a_table_or_a_function():
    request, answer = Request((1, 2), 0), Completion((3,), (-0.5,), "stop")
    table, told = ScriptedEngine({request: answer}), []
    drawn = table.generate([request, request], SamplingConfig(), lambda *news: told.append(news))
    assert drawn == [answer, answer] and told == [(1, 1), (1, 1)]
    assert table.requests == [request, request]
    with pytest.raises(EngineError, match="not in the script"):
        table.generate([Request((9,), 0)], SamplingConfig())
    function = ScriptedEngine(lambda r: Completion(r.prompt_ids, (-1.0, -1.0), "length"))
    assert function.generate([request], SamplingConfig())[0].token_ids == (1, 2)
    with pytest.raises(EngineError, match="too long"):
        function.generate([request], SamplingConfig(max_new_tokens=1))


def test_a_folder_of_all_weights_is_loaded_and_no_weights_are_refused(tmp_path):
    save(llama(seed=2), tmp_path / "trained")
    from_folder, from_memory = engine(), engine()
    from_folder.load(Served("p", tmp_path / "trained", tmp_path))
    from_memory.load(live(llama(seed=2)))
    sampling = SamplingConfig(max_new_tokens=20)
    assert from_folder.generate(requests(), sampling) == from_memory.generate(requests(), sampling)
    with pytest.raises(EngineError, match="no weights"):
        engine().load(Served("p", None, tmp_path))


def test_the_scripted_engine_records_what_was_loaded():
    scripted: Engine = ScriptedEngine({})
    scripted.load(live(None))
    assert scripted.loaded == [live(None)]
    scripted.close()
