import json
import tomllib
from typing import get_args

import pytest
from pydantic import BaseModel

from sdcore.config import Experiment, as_toml, drift, load_experiment
from sdcore.config.base import Settings
from sdcore.config.shipped import shipped_names
from sdcore.errors import ConfigError
from tests.helpers.paths import EXPERIMENTS, QUICKSTART

FILES = sorted(EXPERIMENTS.glob("*.toml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_shipped_experiment_parses_and_survives_a_round_trip(path, tmp_path):
    overrides = ["problems.path=some.jsonl"] if 'source = "jsonl"' in path.read_text() else []
    experiment = load_experiment(path, overrides)
    assert experiment.name == path.stem
    assert Experiment.model_validate_json(experiment.model_dump_json()) == experiment
    written = tmp_path / "again.toml"
    written.write_text(as_toml(experiment.model_dump(mode="json")), "utf-8")
    assert load_experiment(written) == experiment


def test_toml_quotes_what_needs_quotes_and_leaves_out_what_is_none():
    tree = {"a": 'x"\n', "b.c": {"d": [1, 2.5], "none": None}, "e": [{"f": "all", "g": None}]}
    read = tomllib.loads(as_toml(tree))
    assert read == {"a": 'x"\n', "b.c": {"d": [1, 2.5]}, "e": [{"f": "all"}]}


def test_overrides_are_dotted_toml_or_bare_words():
    overrides = ["training.rounds=3", "seeds=[5]", "model.name=some/hub-id", "training.lora.rank=8"]
    overrides += [f'conditions."grpo-2.5".{each}' for each in ("objective=grpo", "learning_rate=1")]
    experiment = load_experiment(QUICKSTART, overrides)
    assert experiment.training.rounds == 3
    assert experiment.seeds == (5,)
    assert experiment.conditions["grpo-2.5"].learning_rate == 1
    assert experiment.model.name == "some/hub-id"
    assert experiment.training.lora is not None and experiment.training.lora.rank == 8


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.round=3", r"training.round: no such setting, did you mean rounds\? \(got 3\)"),
        ("trainig.rounds=3", r"trainig: no such setting, did you mean training\?"),
        ("rounds=3", r"^[^;]*rounds: no such setting, did you mean training.rounds\?"),
        ("conditions.grp.learning_rate=1", r"conditions.grp: .* did you mean grpo\?"),
        ("conditions.grpo.learning_rate=2", r"got: conditions.grpo.learning_rate: "),
        ("conditions.reference.teacher.kin=ema", r"reference.teacher.kin: .* did you mean kind\?"),
        ("conditions.grpo.teacher.kind=ema", r"conditions.grpo.teacher: no such setting \(got"),
        ("training.rounds=0", r"training.rounds: .*greater than or equal to 1 \(got 0\)"),
        (
            "conditions.reference.context=refrence",
            r"no context of this name\s+got: refrence[\s\S]*where: conditions.reference.context"
            r"\s+fix: did you mean reference",
        ),
        (
            "conditions.reference.objective=ppo",
            r"conditions.reference: .*no objective[\s\S]*distill, grpo",
        ),
        ("conditions.base.objective=grpo", r"base"),
        ("conditions.diagnose.objective=grpo", r"diagnose"),
        ("contexts.none=text", r"names of built-in contexts: none"),
        ("contexts.own='{{ reward }}'", r"no such field\s+got: reward"),
        ("diagnose.contexts=['nonesuch']", r"no context of this name\s+got: nonesuch"),
        ("problems.source=jsonl", r"problems.path is needed"),
        ("problems.source=reasoning_gym", r"problems.name is needed"),
        ("problems.query='FROM t'", r"problems.query is not for source = arithmetic"),
        ("problems.test_share=0.9", r"leave nothing to train on"),
        ("seeds=[1, 1]", r"seeds repeat"),
        ("training.questions_per_round=513", r"exceeds problems.train"),
        ("training.steps_per_round=65", r"exceeds the 64 rollouts per round of conditions.ref"),
        ("conditions.reference.context=sibling", r"reference.group_size: sibling shows another"),
        ("sampling.temperature=0", r"grpo learns from their differences"),
        ("name=a b", r"name: .*pattern"),
        ("engine.urls=['http://127.0.0.1:1']", r"engine.urls is for engine.kind = 'vllm'"),
        ("problems.arithmetic.operands=5", r"arithmetic.operands: .*less than or equal to 4"),
        ("problems.arithmetic.largest=18", r"fewer than 10 numbers"),
        ("warmup.steps=3", r"warmup.learning_rate: Field required"),
        ("warmup={steps=3, learning_rate=1e-3, traces=8, batch_size=9}", r"batch_size exceeds"),
        (
            "training={sharded=true, lora={rank=8}}",
            r"sharded is for full fine-tuning: leave out training.lora",
        ),
        ("critic.kind=human", r"critic: .*no critic[\s\S]*oracle, llm"),
        (
            "critic={kind='llm', model='m', fallback='step_aligned'}",
            r"critic.fallback: step_aligned needs a critique",
        ),
        ("critic={kind='llm', model='m', api_key_env='sk-123'}", r"got: critic.api_key_env"),
        ("critic={kind='llm', model='m', api_key_env='K', api_key_block='k'}", r"only one of them"),
        ("critic={kind='llm', model='m', base_url='http://me:pw@host'}", r"got: critic.base_url"),
        ("critic={kind='llm', model='m', base_url='http://host:port'}", r"got: critic.base_url"),
        ("training.max_grad_norm=inf", r"training.max_grad_norm: .*finite number \(got inf"),
        ("training.max_grad_norm=-inf", r"training.max_grad_norm: .*finite number"),
        ("training.max_grad_norm=1e400", r"training.max_grad_norm: .*finite number"),
        ("conditions.grpo.learning_rate=nan", r"conditions.grpo.learning_rate: .*finite"),
        ("problems.checks.overlap=nan", r"problems.checks.overlap: .*finite"),
        ("problems.options.a.b=[1, nan]", r"problems.options: .*a\.b\.1 should be a finite"),
        ("training.rounds=inf", r"training.rounds: .*finite number"),
        ("seeds=[-1]", r"seeds.0: .*greater than or equal to 0"),
        (f"seeds=[{10**23}]", r"seeds.0: .*less than 2\*\*63"),
        ("problems.seed=-1", r"problems.seed: .*greater than or equal to 0"),
        (f"training.rounds={10**400}", r"training.rounds: .*less than 2\*\*63"),
        ("training.rounds=" + "1" * 5000, r"not an override[\s\S]*digits"),
        ("training.rounds=" + "[" * 9000, r"not an override[\s\S]*recursion"),
        ("problems.options.size=3", r"problems.options is not for source = arithmetic"),
        ("problems.subset=main", r"problems.subset is not for source = arithmetic"),
        ("problems.part=test", r"problems.part is not for source = arithmetic"),
        ("problems.answer_pattern='(.+)'", r"answer_pattern is not for source = arithmetic"),
        ("problems.answer_pattern='('", r"problems.answer_pattern: .*not a regular expression"),
        ("problems.answer_pattern='(a)(b)'", r"problems.answer_pattern: .*exactly one group"),
        ("conditions.reference.tokens=until", r"no weighting of this name[\s\S]*mean until_error"),
        ("conditions.reference.tokens={befor=0}", r"tokens.befor: no such .* did you mean before"),
        ("conditions.reference.tokens={after=-1}", r"tokens.after: .*greater than or equal to 0"),
        ("conditions.reference.tokens={kind='positions', width=0}", r"tokens.width: .*than 0"),
        ("conditions.reference.tokens=5", r"reference.tokens: .*a name, such as until_error"),
        ("conditions.grpo.tokens=relevance", r"relevance needs a teacher .* grpo does not have"),
        ("rounds", r"not an override"),
        ("training..rounds=3", r"not an override"),
        ("#=3", r"not an override"),
        ("name.first=x", r"goes through a value"),
    ],
)
def test_a_wrong_setting_is_named_with_what_was_got(override, message):
    with pytest.raises(ConfigError, match=message):
        load_experiment(QUICKSTART, [override])


def test_settings_that_contradict_each_other_are_named_without_the_whole_file():
    with pytest.raises(ConfigError) as error:
        load_experiment(QUICKSTART, ["training.lag=1", "sampling.temperature=1.1"])
    assert error.value.got == (
        "experiment: training.lag = 1 gives conditions.grpo a wrong gradient, because of "
        "sampling.temperature = 1.1: change one of the two"
    )


def test_a_missing_or_broken_file_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match="not found"):
        load_experiment(tmp_path / "none.toml")
    (tmp_path / "broken.toml").write_text("name = ")
    with pytest.raises(ConfigError, match="not TOML"):
        load_experiment(tmp_path / "broken.toml")
    (tmp_path / "broken.toml").write_text(f"a = {'[' * 9000}")
    with pytest.raises(ConfigError, match="not TOML"):
        load_experiment(tmp_path / "broken.toml")


def test_every_number_of_the_settings_has_to_be_finite():
    """Of all sections, whoever registers them: JSON would keep null, which no run could read."""
    kinds = [Settings]
    for kind in kinds:
        kinds += kind.__subclasses__()
    assert len(kinds) > 20
    assert all(kind.model_config["allow_inf_nan"] is False for kind in kinds)


def test_the_fingerprint_names_every_setting_but_the_description():
    experiment = load_experiment(QUICKSTART)
    described = load_experiment(QUICKSTART, ["description='other words'"])
    changed = load_experiment(QUICKSTART, ["training.rounds=3"])
    assert experiment.fingerprint == described.fingerprint != changed.fingerprint
    assert experiment.experiment_id == f"quickstart-{experiment.fingerprint[:8]}"


def test_which_engine_is_part_of_the_identity_and_where_its_servers_are_is_not():
    experiment = load_experiment(QUICKSTART)
    explicit = load_experiment(QUICKSTART, ["engine.kind=transformers"])
    own = load_experiment(QUICKSTART, ["engine.kind=vllm"])
    assert experiment.fingerprint == explicit.fingerprint != own.fingerprint
    lora = ["engine.kind=vllm", "training.lora.rank=8"]
    ours = load_experiment(QUICKSTART, [*lora, "engine.cache_gib=1"])
    there = load_experiment(QUICKSTART, [*lora, "engine.urls=['http://127.0.0.1:1']"])
    assert ours.fingerprint == there.fingerprint != own.fingerprint


def test_a_warm_up_is_not_sharded():
    with pytest.raises(ConfigError, match="a warm-up is not sharded"):
        warmed_up = ["warmup={steps=3, learning_rate=1e-3}", "training.sharded=true"]
        load_experiment(QUICKSTART, warmed_up)


@pytest.mark.parametrize(
    "more", [[], ["training.lora.rank=8", "warmup.learning_rate=1e-4", "warmup.steps=2"]]
)
def test_running_servers_take_adapters_of_the_named_model_only(more):
    there = ["engine.kind=vllm", "engine.urls=['http://127.0.0.1:1']"]
    with pytest.raises(ConfigError, match="adapters of the named model only"):
        load_experiment(QUICKSTART, [*there, *more])


def _models(settings: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Every settings model that an experiment is made of, by name, the innermost first."""
    found: dict[str, type[BaseModel]] = {}

    def visit(kind: object) -> None:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            for field in kind.model_fields.values():
                visit(field.annotation)
            found.setdefault(kind.__name__, kind)
            for derived in kind.__subclasses__():
                visit(derived)
        for part in get_args(kind):
            visit(part)

    visit(settings)
    return found


MODELS = _models(Experiment)
DEFAULTS = [
    (model, name)
    for model, settings in MODELS.items()
    for name, field in settings.model_fields.items()
    if not field.is_required()
]
LONG = [
    "warmup={steps=3, learning_rate=1e-3}", "training.lora.rank=8", "problems.band.samples=4",
    "critic={kind='llm', model='m'}", "contexts.own='{{ question }}'",
]  # fmt: skip


@pytest.mark.parametrize(("model", "name"), DEFAULTS)
def test_a_default_that_changes_later_changes_no_stored_experiment(model, name):
    stored = [load_experiment(QUICKSTART, changes) for changes in ([], LONG)]
    texts = [each.model_dump_json() for each in stored]
    field = MODELS[model].model_fields[name]
    before, field.default = field.default, "another default"
    try:
        for settings in MODELS.values():
            settings.model_rebuild(force=True)
        for experiment, text in zip(stored, texts, strict=True):
            again = Experiment.model_validate_json(text)
            assert again.model_dump() == experiment.model_dump()
            assert again.model_dump_json() == text
            assert again.fingerprint == experiment.fingerprint
            assert drift(json.loads(text), again.model_dump(mode="json")) == []
    finally:
        field.default = before
        for settings in MODELS.values():
            settings.model_rebuild(force=True)


def test_the_walk_over_the_defaults_finds_all_of_them():
    assert {"Experiment", "TeacherConfig", "BandConfig", "LoraConfig", "LlmCriticConfig"} <= {
        *MODELS
    }
    assert len(DEFAULTS) > 80


def test_the_walk_over_the_defaults_would_notice_a_setting_that_is_not_stored(monkeypatch):
    text = load_experiment(QUICKSTART).model_dump(mode="json")
    del text["training"]["weight_decay"]  # as `exclude_if` did
    field = MODELS["TrainingConfig"].model_fields["weight_decay"]
    monkeypatch.setattr(field, "default", 0.5)
    try:
        for settings in MODELS.values():
            settings.model_rebuild(force=True)
        assert Experiment.model_validate(text).training.weight_decay == 0.5
    finally:
        monkeypatch.undo()
        for settings in MODELS.values():
            settings.model_rebuild(force=True)


def test_drift_names_what_differs_and_nothing_else():
    before, now = (
        load_experiment(QUICKSTART, changes).model_dump(mode="json")
        for changes in ([], ["training.rounds=3", "training.lora.rank=8", "prompts.system='Hi'"])
    )
    changes = [line.partition(" ")[0] for line in drift(before, now)]
    targets = ["training.lora.alpha", "training.lora.rank", "training.lora.targets"]
    assert changes == ["prompts.system", *targets, "training.rounds"]


def test_a_critic_is_needed_where_a_context_is_made_of_critiques():
    words = ["problems.source=jsonl", "problems.path=some.jsonl"]
    with pytest.raises(ConfigError, match=r"conditions.step_aligned needs a critic"):
        load_experiment(QUICKSTART, words)
    with pytest.raises(ConfigError, match=r"oracle judges arithmetic, word_problems problems only"):
        load_experiment(QUICKSTART, [*words, "critic.kind=oracle"])
    assert load_experiment(QUICKSTART, [*words, "critic={kind='llm', model='m'}"]).judge
    assert load_experiment(QUICKSTART).judge.kind == "oracle"
    others = [*words, "contexts.theirs='{{ other_critique.corrected }}'"]
    others += ["conditions.step_aligned.context=theirs"]
    with pytest.raises(ConfigError, match=r"conditions.step_aligned needs a critic"):
        load_experiment(QUICKSTART, others)
    preflight = [*words, "conditions.step_aligned.context=reference", others[2]]
    with pytest.raises(ConfigError, match=r"diagnose.contexts: theirs needs a critic"):
        load_experiment(QUICKSTART, [*preflight, "diagnose.contexts=['theirs']"])
    with pytest.raises(ConfigError, match=r"critic.fallback: theirs needs a critique itself"):
        load_experiment(QUICKSTART, [*others, "critic={kind='llm', model='m', fallback='theirs'}"])


def test_a_policy_gradient_needs_rollouts_of_the_very_distribution():
    gradient = "conditions.reference.divergence=policy_gradient"
    refused = {
        "training.steps_per_round=2": r"conditions.reference: training.steps_per_round = 2",
        "sampling.temperature=0.7": r"conditions.reference: sampling.temperature = 0.7, which is 1",
        "sampling.top_p=0.9": r"conditions.reference: sampling.top_p = 0.9, which leaves out",
    }
    for override, message in refused.items():
        assert load_experiment(QUICKSTART, [override])
        with pytest.raises(ConfigError, match=message):
            load_experiment(QUICKSTART, [gradient, override])
    same = ["sampling.temperature=0.7", "conditions.reference.temperature=0.7"]
    assert load_experiment(QUICKSTART, [gradient, *same])


def test_a_context_length_that_chooses_problems_is_part_of_the_identity():
    def made(*overrides: str) -> str:
        return load_experiment(QUICKSTART, overrides).fingerprint

    server, bounded = "engine.kind=vllm", "engine.context_length=512"
    assert made(server) != made(server, bounded) != made(server, "engine.context_length=600")
    assert made() == made(bounded)  # the engine of this process does not read it


def test_a_budget_without_prices_limits_nothing_and_is_refused():
    def critic(**settings):
        known = {"kind": "llm", "model": "m", "base_url": "http://127.0.0.1:1/v1"} | settings
        pairs = (f"{name}={value!r}" for name, value in known.items() if value is not None)
        return f"critic={{{', '.join(pairs)}}}"

    free = r"limits nothing[\s\S]*price_in and price_out[\s\S]*max_total_tokens"
    for refused in (critic(max_budget=5), critic(max_budget=5, price_in=1, base_url=None)):
        with pytest.raises(ConfigError, match=f"critic.max_budget = 5 {free}"):
            load_experiment(QUICKSTART, [refused])
    with pytest.raises(ConfigError, match=f"design.max_cost = 2 {free}"):
        load_experiment(QUICKSTART, [critic(), "design.max_cost=2"])
    priced = critic(price_out=1, max_budget=5)
    assert load_experiment(QUICKSTART, [priced, "design.max_cost=2"]).judge.limits.cost == 5
    assert load_experiment(QUICKSTART, [critic(max_total_tokens=5)])
    assert load_experiment(QUICKSTART, ["design.max_cost=2"])  # the oracle costs nothing


def test_what_a_context_quotes_of_other_rollouts_has_to_be_in_the_round():
    critic = "critic={kind='llm', model='m', fallback='sibling'}"
    with pytest.raises(ConfigError, match=r"step_aligned.group_size: sibling shows another"):
        load_experiment(QUICKSTART, [critic])
    assert load_experiment(QUICKSTART, [critic, "conditions.step_aligned.group_size=2"])
    unasked = "conditions.step_aligned.context=reference"
    assert load_experiment(QUICKSTART, [critic, unasked])  # no condition falls back
    alone = ["training.questions_per_round=1", "conditions.step_aligned.context=shuffled"]
    with pytest.raises(ConfigError, match=r"questions_per_round: shuffled of conditions.step"):
        load_experiment(QUICKSTART, alone)


def test_a_critic_is_needed_where_tokens_are_weighted_by_the_first_error():
    words = ["problems.source=jsonl", "problems.path=some.jsonl"]
    words += ["conditions.step_aligned.context=reference"]
    assert load_experiment(QUICKSTART, words).judge is None
    for tokens in ("until_error", "error", "{ after = 0 }"):
        own = [*words, f"conditions.reference.tokens={tokens}"]
        with pytest.raises(ConfigError, match=r"conditions.reference.tokens: \w+ needs a critic"):
            load_experiment(QUICKSTART, own)
        assert load_experiment(QUICKSTART, [*own, "critic={kind='llm', model='m'}"]).judge
    assert load_experiment(QUICKSTART, [*words, "conditions.reference.tokens=positions"])


def test_the_short_forms_of_a_weighting_are_stored_in_full():
    def stored(tokens: str) -> object:
        own = load_experiment(QUICKSTART, [f"conditions.reference.tokens={tokens}"])
        again = Experiment.model_validate_json(own.model_dump_json())
        assert again == own and again.fingerprint == own.fingerprint
        return own.model_dump(mode="json")["conditions"]["reference"]["tokens"], own.fingerprint

    regions = {"kind": "regions", "before": 1.0, "at": 1.0, "after": 0.0, "answer": 1.0}
    assert stored("{ after = 0 }")[0] == stored("{ kind = 'regions', after = 0 }")[0] == regions
    assert stored("until_error")[0] == {"kind": "until_error"}
    given = ("all", "until_error", "positions", "{ kind = 'positions', floor = 0 }")
    assert len({stored(tokens)[1] for tokens in given}) == 4
    assert stored("all")[1] == load_experiment(QUICKSTART).fingerprint


def test_how_a_critic_is_reached_does_not_change_the_experiment():
    def llm(**settings: object) -> str:
        overrides = [f"critic.{name}={value}" for name, value in settings.items()]
        return load_experiment(
            QUICKSTART, ["critic={kind='llm', model='m'}", *overrides]
        ).fingerprint

    assert llm() == llm(
        max_budget=3.0, price_in=1.0, concurrency=2, base_url="http://127.0.0.1:1/v1"
    )
    assert len({llm(), llm(attempts=5), llm(fallback="none"), llm(structured="false")}) == 4
    assert llm() != load_experiment(QUICKSTART).fingerprint


def test_settings_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        load_experiment(QUICKSTART).training.rounds = 4  # type: ignore[misc]


def test_a_file_may_bring_its_own_contexts_and_train_on_them():
    own = ["contexts.own='Step {{ critique.first_wrong_step }} is wrong.'"]
    experiment = load_experiment(QUICKSTART, [*own, "conditions.reference.context=own"])
    assert experiment.distilled == ("own", "step_aligned")
    assert experiment.known_contexts["own"].needs == {"critique"}
    assert experiment.fingerprint != load_experiment(QUICKSTART, own).fingerprint
    assert Experiment.model_validate_json(experiment.model_dump_json()) == experiment


def test_the_preflight_is_part_of_no_key():
    other = load_experiment(QUICKSTART, ["diagnose.problems=3"])
    assert other.experiment_id == load_experiment(QUICKSTART).experiment_id


def test_an_unknown_key_of_a_condition_named_like_its_objective_is_located_in_the_file(tmp_path):
    # pydantic's own location is conditions.grpo.grpo.learning_rat: condition, then objective
    text = QUICKSTART.read_text().replace("learning_rate = 4e-4", "learning_rat = 4e-4", 1)
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(ConfigError) as error:
        load_experiment(tmp_path / "mine.toml")
    assert "conditions.grpo.learning_rate: Field required" in str(error.value.got)
    assert "conditions.grpo.learning_rat: no such setting, did you mean learning_rate?" in str(
        error.value.got
    )


def test_a_shipped_experiment_has_a_name_and_any_other_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").write_text(QUICKSTART.read_text().replace("[0, 1, 2]", "[7]"))
    assert load_experiment("quickstart") == load_experiment(QUICKSTART)
    assert load_experiment("./quickstart").seeds == (7,)
    assert shipped_names() == sorted(path.stem for path in FILES)


@pytest.mark.parametrize(
    ("experiment", "message"),
    [
        ("quickstat", "no such experiment\n  got: quickstat(.|\n)*fix: did you mean quickstart?"),
        ("unheard-of", "expected: a path, or one of gsm8k, gsm8k-critic, laptop"),
        ("quickstrt.toml", "not found(.|\n)*fix: did you mean quickstart?"),
        ("folder/mine.toml", "not found(.|\n)*name of a shipped experiment: gsm8k"),
    ],
)
def test_an_unknown_experiment_is_refused_with_the_closest_name(experiment, message):
    with pytest.raises(ConfigError, match=message):
        load_experiment(experiment)


@pytest.mark.parametrize(
    "tokens", ['["all", "my:mask"]', '[{ kind = "my:mask" }]', '["all", { after = 0.5 }]']
)
def test_a_form_names_no_code_in_the_tokens_of_a_search(tokens):
    harmless = load_experiment(QUICKSTART, ['design.tokens=["all", "error"]'], trusted=False)
    assert [each.kind for each in harmless.design.tokens] == ["all", "error"]
    with pytest.raises(ConfigError, match="a form or the API cannot set this"):
        load_experiment(QUICKSTART, [f"design.tokens={tokens}"], trusted=False)
