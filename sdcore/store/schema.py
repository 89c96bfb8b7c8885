"""Every table: its columns, its key, and what one row means. The store creates them from here."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property

import polars as pl

from sdcore.errors import DataError

_SQL_TYPES: dict[pl.DataType, str] = {
    pl.String(): "VARCHAR", pl.Int64(): "BIGINT", pl.Int32(): "INTEGER", pl.Float64(): "DOUBLE",
    pl.Float32(): "FLOAT", pl.Boolean(): "BOOLEAN", pl.Datetime("us"): "TIMESTAMP",
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """One column; `nullable` columns say in `meaning` when they are empty."""

    name: str
    dtype: pl.DataType
    meaning: str
    nullable: bool = False

    @property
    def sql_type(self) -> str:
        """Its type in DuckDB."""
        if isinstance(self.dtype, pl.List):
            return f"{_SQL_TYPES[self.dtype.inner]}[]"  # type: ignore[index]
        return _SQL_TYPES[self.dtype]


@dataclass(frozen=True)
class Table:
    """One table; `key` are the columns on which an append is an anti-join."""

    name: str
    meaning: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]

    @cached_property
    def dtypes(self) -> dict[str, pl.DataType]:
        """Column names and Polars types, in order."""
        return {column.name: column.dtype for column in self.columns}

    def frame(self, rows: list[dict[str, object]]) -> pl.DataFrame:
        """Rows as a frame of this table's types.

        Raises:
            KeyError: a row lacks a column or brings one that the table does not have.
        """
        for row in rows:
            if row.keys() != self.dtypes.keys():
                raise KeyError(f"{self.name}: columns differ: {row.keys() ^ self.dtypes.keys()}")
        return pl.DataFrame(rows, schema=self.dtypes, orient="row")

    def checked(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The frame in this table's column order and types.

        Raises:
            DataError: columns or types differ, a required value is null, or a key occurs twice.
        """
        if set(frame.columns) != self.dtypes.keys():
            raise DataError(
                "columns differ from the schema",
                got=sorted(set(frame.columns) ^ set(self.dtypes)),
                expected="no difference",
                where=self.name,
            )
        if frame.schema != pl.Schema(self.dtypes):
            frame = self._cast(frame)
        for column in self.columns:
            if not column.nullable and frame[column.name].null_count():
                row = frame[column.name].is_null().arg_max()
                where = f"{self.name}.{column.name}"
                raise DataError("a required value is null", got=f"row {row}", where=where)
        if self.repeats(frame):
            row = frame[self.key].is_duplicated().arg_max() or 0
            raise DataError("a key occurs twice", got=frame[self.key].row(row), where=self.name)
        return frame

    def repeats(self, frame: pl.DataFrame) -> bool:
        """Return whether a key occurs twice."""
        if len(self.key) == 1:  # many small frames are checked, and this takes a tenth of the time
            return frame[self.key[0]].n_unique() < len(frame)
        return bool(frame[self.key].is_duplicated().any())

    def _cast(self, frame: pl.DataFrame) -> pl.DataFrame:
        try:
            return frame.select(pl.col(name).cast(dtype) for name, dtype in self.dtypes.items())
        except pl.exceptions.PolarsError as error:
            raise DataError("a column has the wrong type", got=error, where=self.name) from error

    @property
    def ddl(self) -> str:
        """The statement that creates the table where it does not exist."""
        columns = ", ".join(
            f"{column.name} {column.sql_type}{'' if column.nullable else ' NOT NULL'}"
            for column in self.columns
        )
        return f"CREATE TABLE IF NOT EXISTS {self.name} ({columns})"


def content_key(*parts: object) -> str:
    """Key derived from content: 128 bits of SHA-256 over canonical JSON, as 32 hex digits."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


TEXT, INT, REAL, FLAG, TIME = pl.String(), pl.Int64(), pl.Float64(), pl.Boolean(), pl.Datetime("us")
IDS, FLOATS = pl.List(pl.Int32()), pl.List(pl.Float32())

_RUN = (
    Column("experiment_id", TEXT, "the experiment run"),
    Column("condition", TEXT, "name of the condition; 'base' is the untrained policy"),
    Column("seed", INT, "seed of the run; the base policy has the first seed of the experiment"),
)
_METRICS = {
    "avg": "mean accuracy",
    "maj": "chance that the majority answer is right; equal answers vote as one, and samples "
    "without an answer vote for none, which is wrong",
    "pass": "share of problems with a correct sample",
}
_PAIR = ("experiment_id", "condition", "baseline", "metric", "budget")
_COMPARED = (
    Column("experiment_id", TEXT, "the experiment run"),
    Column("condition", TEXT, "the condition"),
    Column("baseline", TEXT, "what it is compared with"),
    Column("metric", TEXT, "avg_at_k, maj_at_k or pass_at_k"),
    Column("budget", TEXT, "epochs: equal rounds; tokens: equal sampled tokens"),
)

_TABLES = (
    Table("experiments", "a run of an experiment file", ("experiment_id",), (
        Column("experiment_id", TEXT, "name and start of the fingerprint"),
        Column("name", TEXT, "name in the experiment file"),
        Column("fingerprint", TEXT, "hash of the settings that can change a result"),
        Column("config", TEXT, "all resolved settings, JSON"),
        Column("code_version", TEXT, "package version and git commit"),
        Column("libraries", TEXT, "versions of the libraries that matter, JSON"),
        Column("created_at", TIME, "UTC time of the first start; its day is the date in every "
               "prompt whose chat template reads the clock"),
    )),
    Table("problems", "a question of an experiment", ("experiment_id", "problem_id"), (
        Column("experiment_id", TEXT, "the experiment run"),
        Column("problem_id", TEXT, "hash of question and answer"),
        Column("question", TEXT, "what the solver sees"),
        Column("solution", TEXT, "worked reference solution; empty where the source has none", True),
        Column("reference", TEXT, "the reference's final answer"),
        Column("split", TEXT, "train, validation or test"),
        Column("position", INT, "order within the split, from 0"),
        Column("source", TEXT, "generator or file that it comes from, with the row"),
    )),
    Table("rejected_problems", "a row of a source that was left out", ("experiment_id", "row"), (
        Column("experiment_id", TEXT, "the experiment run"),
        Column("source", TEXT, "generator or file that it comes from"),
        Column("row", INT, "number of the row, from 1"),
        Column("kind", TEXT, "bad, duplicate, conflict (same question, another answer), overlap (of a "
               "train problem with a scored one), or too long (for the model's context)"),
        Column("reason", TEXT, "why it was left out"),
        Column("excerpt", TEXT, "how it begins"),
    )),
    Table("difficulties", "the difficulty of a problem for the untrained policy, if problems.band is set",
          ("experiment_id", "problem_id"), (
        Column("experiment_id", TEXT, "the experiment run"),
        Column("problem_id", TEXT, "the problem"),
        Column("policy_id", TEXT, "the policy that was sampled"),
        Column("k", INT, "samples, the rollouts of purpose filter"),
        Column("avg_at_k", REAL, "share of them that are correct"),
        Column("format_rate", REAL, "share of them that are well-formed"),
        Column("critic_solves", FLAG, "the critic's own answer is right; empty where it was not "
               "asked (the solver's measures rule the problem out, or there is no critic) or gave no answer", True),
        Column("critic_tokens", INT, "tokens that it read and wrote"),
        Column("critic_cost", REAL, "price of asking it"),
        Column("in_band", FLAG, "hard enough, but learnable: it may be used"),
    )),
    Table("policies", "a set of weights", ("policy_id",), (
        *_RUN,
        Column("policy_id", TEXT, "hash of run, condition, seed and weights"),
        Column("parent_id", TEXT, "the policy it was trained from; empty for the base", True),
        Column("step", INT, "optimizer steps since the base; negative before a warm-up"),
        Column("round", INT, "rounds since the base; -1 before a warm-up"),
        Column("kind", TEXT, "base, lora or full"),
        Column("path", TEXT, "checkpoint folder below the workspace, or the model's name for the "
               "base; empty where only the digest was kept", True),
        Column("sha256", TEXT, "digest of the safetensors"),
        Column("hinted", REAL, "share of the warm-up's traces that followed a context; empty "
               "where no warm-up made these weights", True),
    )),
    Table("rollouts", "one sampled trace", ("rollout_id",), (
        *_RUN,
        Column("rollout_id", TEXT, "hash of policy, prompt ids, sampling settings, seed and sample index"),
        Column("policy_id", TEXT, "the weights that sampled it"),
        Column("problem_id", TEXT, "the question"),
        Column("purpose", TEXT, "filter, train, validation or test"),
        Column("round", INT, "training round, or rounds of the scored policy"),
        Column("sample_index", INT, "0 .. n - 1 among the samples of this question"),
        Column("sampling_seed", INT, "seed of this sample's random numbers"),
        Column("prompt_ids", IDS, "token ids of the student prompt"),
        Column("response_ids", IDS, "token ids of the response, end token included"),
        Column("text", TEXT, "the response as text"),
        Column("logprobs", FLOATS, "log-prob of each response token at temperature 1"),
        Column("finish_reason", TEXT, "stop or length"),
        Column("answer", TEXT, "the parsed final answer; empty where there is none", True),
        Column("reward", REAL, "what the experiment's grader gives, 0 to 1; the default grader gives 0 or 1"),
        Column("correct", FLAG, "the reward is 1; for the default grader: the answer equals the reference"),
        Column("grade_details", TEXT, "the grader's named values, JSON; empty where it gives none", True),
        Column("grade_reason", TEXT, "why it is not correct; empty where it is", True),
        Column("well_formed", FLAG, "steps tagged 1 .. N and one answer"),
    )),
    Table("critiques", "one critique of one rollout", ("critique_id",), (
        *_RUN,
        Column("critique_id", TEXT, "hash of rollout and critic"),
        Column("rollout_id", TEXT, "the rollout that was criticised"),
        Column("critic", TEXT, "oracle, or the critic model's name; of a cascade both names"),
        Column("writer", TEXT, "the critic whose answer this is: the critic itself, or a model of a cascade, the small one where its answer was accepted"),
        Column("content_id", TEXT, "hash of the language model and of all that it saw; empty for the oracle", True),
        Column("verdict", TEXT, "case A correct, B step missing, C unfinished, D incorrect; empty where the answer could not be read", True),
        Column("first_wrong_step", INT, "number of the earliest wrong step, as the critic says; empty where none", True),
        Column("corrected", TEXT, "the corrected trace; empty where invalid", True),
        Column("valid", FLAG, "it is step-aligned and ends in the reference answer"),
        Column("invalid_reason", TEXT, "why it is not valid; empty where it is", True),
        Column("repaired", TEXT, "what was repaired without asking again; empty where nothing was", True),
        Column("prefix_tokens", INT, "leading response tokens that the corrected trace repeats verbatim; empty where invalid", True),
        Column("raw", TEXT, "the language model's last answer as it came; empty for the oracle and where none came", True),
        Column("attempts", INT, "times that the critic was asked; 0 where an earlier answer was used again"),
        Column("prompt_tokens", INT, "tokens that the critic read for this row"),
        Column("tokens", INT, "tokens that the critic wrote for this row"),
        Column("cost", REAL, "what they cost, in the currency of the critic's prices"),
    )),
    Table("critic_answers", "a paid answer of one model of a cascade, valid or not; its cost is in the critique's too",
          ("answer_id",), (
        *_RUN,
        Column("answer_id", TEXT, "hash of rollout, model and content_id"),
        Column("rollout_id", TEXT, "the rollout that was criticised"),
        Column("critic", TEXT, "the model's name"),
        Column("content_id", TEXT, "hash of the model and of all that it saw"),
        Column("valid", FLAG, "validation accepted it when it came"),
        Column("invalid_reason", TEXT, "why it was not accepted; empty where it was", True),
        Column("raw", TEXT, "the last answer as it came"),
        Column("attempts", INT, "times that the model was asked"),
        Column("prompt_tokens", INT, "tokens that it read"),
        Column("tokens", INT, "tokens that it wrote"),
        Column("cost", REAL, "what they cost, in the currency of its prices"),
    )),
    Table("critic_trials", "a solution whose first wrong step is known; its critique has rollout_id = trial_id",
          ("trial_id",), (
        *_RUN,
        Column("trial_id", TEXT, "hash of solution and source"),
        Column("source", TEXT, "where it comes from"),
        Column("question", TEXT, "the question"),
        Column("text", TEXT, "the solution as a step-tagged trace"),
        Column("reference", TEXT, "the reference's final answer; empty where unknown", True),
        Column("correct", FLAG, "the solution's final answer is right"),
        Column("first_wrong_step", INT, "the true one; empty where no step is wrong", True),
    )),
    Table("contexts", "what the self-teacher saw for one rollout", ("context_id",), (
        *_RUN,
        Column("context_id", TEXT, "hash of rollout, context and teacher prompt"),
        Column("rollout_id", TEXT, "the rollout that is scored"),
        Column("context", TEXT, "name of the registered context"),
        Column("text", TEXT, "the context as text; empty for none", True),
        Column("critique_id", TEXT, "the critique it quotes; empty where it quotes none", True),
        Column("teacher_prompt_ids", IDS, "token ids of the teacher prompt"),
    )),
    Table("token_signals", "one response token under one context",
          ("rollout_id", "context", "policy_id", "position"), (
        *_RUN,
        Column("rollout_id", TEXT, "the rollout"),
        Column("context", TEXT, "the context of the teacher; the objective's name for GRPO"),
        Column("policy_id", TEXT, "the student that was scored"),
        Column("round", INT, "training round"),
        Column("position", INT, "index of the response token"),
        Column("token_id", INT, "the token"),
        Column("token", TEXT, "the token as text; tokens that share a character all have it"),
        Column("start", INT, "character of the rollout's text at which the token begins"),
        Column("student_logprob", REAL, "log p_student of the token"),
        Column("teacher_logprob", REAL, "log p_teacher of the token; empty without a teacher", True),
        Column("advantage", REAL, "teacher minus student log-prob, or GRPO's normalised reward"),
        Column("kl", REAL, "full-vocabulary forward KL; empty without a teacher", True),
        Column("entropy", REAL, "entropy of the student"),
        Column("weight", REAL, "weight of the token in the loss, before it is divided by the sum of all; 0: nothing is learned from it; empty in the preflight", True),
        Column("step", INT, "number of the step that holds the token; empty outside", True),
        Column("region", TEXT, "before, at or after the first wrong step; unjudged without a critique; tag; answer; other"),
    )),
    Table("teacher_samples", "one response of the preflight, sampled with a context in the prompt, or continuing such a sample",
          ("teacher_sample_id",), (
        *_RUN,
        Column("teacher_sample_id", TEXT, "hash of rollout, context, start, prompt ids, sampling settings and seed"),
        Column("policy_id", TEXT, "the weights that sampled it"),
        Column("rollout_id", TEXT, "the rollout whose context the prompt shows"),
        Column("problem_id", TEXT, "the question"),
        Column("context", TEXT, "name of the context; none is the student's own prompt, `none with own prompt` the "
               "teacher's, if it has another one"),
        Column("start", TEXT, "question; step, error: it continues the rollout before or after its first "
               "wrong step; after_question, after_step: the student, without the context, continues such "
               "a sample after as many steps as the rollout has up to its first wrong one"),
        Column("sample_index", INT, "0 .. n - 1 among the samples of this question, context and start"),
        Column("sampling_seed", INT, "seed of this sample's random numbers"),
        Column("prompt_ids", IDS, "token ids of all that it continues, those of the trace included"),
        Column("prefix_tokens", INT, "tokens of the trace that it continues; 0 from the question"),
        Column("response_ids", IDS, "token ids that were sampled, end token included; none where the "
               "sample to continue does not end its step, and stands as it is"),
        Column("text", TEXT, "the whole trace, including what it continues"),
        Column("finish_reason", TEXT, "stop or length"),
        Column("answer", TEXT, "the parsed final answer; empty where there is none", True),
        Column("reward", REAL, "what the experiment's grader gives, 0 to 1"),
        Column("correct", FLAG, "the reward is 1"),
        Column("well_formed", FLAG, "steps tagged 1 .. N and one answer"),
        Column("reaction", TEXT, "repeats: it continues with the wrong value of the first wrong step; "
               "repairs: with the corrected one; ignores: with neither; empty from the question, and "
               "where no number of its own sets the wrong step apart from the corrected one", True),
    )),
    Table("branches", "a token of a wrong rollout that was replaced by the teacher's preferred one",
          ("branch_id",), (
        *_RUN,
        Column("branch_id", TEXT, "hash of rollout, context, position, sampling settings and seed"),
        Column("policy_id", TEXT, "the weights that sampled it, of student and teacher"),
        Column("rollout_id", TEXT, "the rollout"),
        Column("problem_id", TEXT, "the question"),
        Column("context", TEXT, "the context of the teacher"),
        Column("position", INT, "index of the response token"),
        Column("sampling_seed", INT, "seed of the random numbers of both continuations"),
        Column("forced_id", INT, "the teacher's most likely token after the tokens before"),
        Column("agrees", FLAG, "it equals the rollout's token: nothing was sampled"),
        Column("response_ids", IDS, "what the student sampled after the forced token"),
        Column("correct", FLAG, "the answer is right; empty where it agrees", True),
        Column("resampled_ids", IDS, "what the student sampled after the prefix alone"),
        Column("resampled_correct", FLAG, "its answer is right; empty where it agrees", True),
    )),
    Table("candidates", "a candidate of `sdcore design` at one rung, with its result",
          ("design_id", "candidate", "rung"), (
        Column("experiment_id", TEXT, "the run of the experiment file"),
        Column("design_id", TEXT, "the search: name, and hash of the settings of file and search"),
        Column("candidate", TEXT, "name of the condition"),
        Column("rung", INT, "0: preflight; from 1: short runs; one more than the last of them: confirmation"),
        Column("run_id", TEXT, "the run that holds what was sampled for it"),
        Column("context", TEXT, "the context that the teacher is shown"),
        Column("learns_from", TEXT, "which tokens it learns from"),
        Column("divergence", TEXT, "divergence of the loss; empty where the objective has no choice", True),
        Column("rounds", INT, "rounds of training since the base"),
        Column("seeds", INT, "seeds that were trained; 0 in the preflight"),
        Column("score", REAL, "preflight: mean of teacher, auc and aim; rung: avg@k on validation, mean over "
               "seeds; confirmation: avg@k on test; empty where it has none", True),
        Column("low", REAL, "lower bound of the score; empty in the preflight", True),
        Column("high", REAL, "upper bound of the score; empty in the preflight", True),
        Column("teacher", REAL, "preflight: share of right answers with the context; else empty", True),
        Column("auc", REAL, "preflight: AUC of the error; else empty", True),
        Column("aim", REAL, "preflight: share of the loss up to the end of the first wrong step; else empty", True),
        Column("rank", INT, "place at the rung, from 1; empty where it was skipped", True),
        Column("sampled_tokens", INT, "response tokens sampled at the rung; shared ones are divided equally"),
        Column("critic_tokens", INT, "tokens that a language model as critic read and wrote at the rung"),
        Column("cost", REAL, "what these cost, in the currency of the critic's prices"),
        Column("fate", TEXT, "kept, dropped, or skipped (it cannot be trained); of a confirmation: "
               "confirmed, not shown or refuted, and baseline"),
        Column("reason", TEXT, "why"),
        Column("decided_at", TIME, "UTC time of the decision"),
    )),
    Table("updates", "one optimizer step", ("update_id",), (
        *_RUN,
        Column("update_id", TEXT, "hash of run, condition, seed and step"),
        Column("policy_id", TEXT, "the weights after the round"),
        Column("round", INT, "training round, from 0; -1 is the warm-up"),
        Column("step", INT, "optimizer step, from 1; a warm-up ends with 0"),
        Column("loss", REAL, "mean loss per response token, by the weights of the tokens"),
        Column("grad_norm", REAL, "norm before clipping"),
        Column("learning_rate", REAL, "of this step"),
        Column("rollouts", INT, "rollouts in the batch"),
        Column("weightless", INT, "rollouts whose tokens all have weight 0, so that nothing is learned from them"),
        Column("tokens", INT, "response tokens in the batch"),
        Column("mean_length", REAL, "response tokens per rollout"),
        Column("entropy", REAL, "mean entropy of the student, nats per token"),
        Column("accuracy", REAL, "share of the rollouts that the round trains on that are correct"),
        Column("mean_reward", REAL, "mean reward of the rollouts that the round trains on"),
        Column("zero_variance_groups", INT, "GRPO groups of the round without a signal; 0 for "
               "distillation"),
        Column("first_token_kl", REAL, "mean KL of the first token of each response, nats; empty "
               "without a teacher", True),
        Column("logprob_drift", REAL, "mean |engine - trainer| log-prob of the sampled tokens, "
               "with training.lag also what the last update moved them by; "
               "empty in a warm-up, where none are sampled", True),
        Column("logprob_drift_max", REAL, "largest |engine - trainer| log-prob; empty in a warm-up", True),
        Column("sampled_update_share", REAL, "share of the LoRA update so far that the sampler of "
               "this round's rollouts held, 1 for all; empty without one, for vLLM, with training.lag, "
               "or in a warm-up",
               True),
        Column("base_drift", REAL, "mean log-prob that the base's own validation rollouts lose under "
               "the weights before the round's steps, nats per token: an estimate of the KL from the "
               "base; empty without such rollouts and in a warm-up", True),
        Column("padding_share", REAL, "share of padded positions in the micro-batches"),
        Column("seconds", REAL, "wall time of the step"),
    )),
    Table("stops", "a condition and seed that ended early because of a sign of collapse",
          ("experiment_id", "condition", "seed"), (
        *_RUN,
        Column("round", INT, "last training round; those after it are absent"),
        Column("good_round", INT, "rounds behind the last good policy, the last one that is scored "
               "and compared; 0: no trained policy is good"),
        Column("sign", TEXT, "what collapsed: a name of the setting health.stop_when"),
        Column("reason", TEXT, "what was seen"),
    )),
    Table("scores", "one policy on one split; its intervals are within this seed only", ("score_id",), (
        *_RUN,
        Column("score_id", TEXT, "hash of policy, split and number of samples"),
        Column("policy_id", TEXT, "the scored weights"),
        Column("round", INT, "rounds since the base"),
        Column("split", TEXT, "validation or test"),
        Column("problems", INT, "problems of the split"),
        Column("k", INT, "samples per problem"),
        *(Column(f"{metric}_at_k{end}", REAL, meaning + note)
          for metric, meaning in _METRICS.items()
          for end, note in (("", ""), ("_low", ", lower bound over problems"),
                            ("_high", ", upper bound over problems"))),
        Column("mean_reward", REAL, "mean reward of the rollouts"),
        Column("mean_length", REAL, "response tokens per rollout"),
        Column("format_rate", REAL, "share of well-formed traces"),
        Column("sampled_tokens", INT, "training tokens sampled to get here"),
        Column("seconds", REAL, "wall time of sampling and grading"),
    )),
    Table("problem_scores", "one policy on one problem of a split", ("score_id", "problem_id"), (
        *_RUN,
        Column("score_id", TEXT, "the row of `scores` that it is part of"),
        Column("problem_id", TEXT, "the problem"),
        Column("round", INT, "rounds since the base"),
        Column("split", TEXT, "validation or test"),
        *(Column(f"{metric}_at_k", REAL, meaning) for metric, meaning in _METRICS.items()),
    )),
    Table("trials", "a condition that stands for one value, or combination of values, of a condition with lists",
          ("experiment_id", "trial"), (
        Column("experiment_id", TEXT, "the experiment run"),
        Column("condition", TEXT, "the condition of the experiment file that has the lists"),
        Column("trial", TEXT, "name of the trial, which is a condition of its own in all other tables"),
        Column("setting_values", TEXT, "its values by setting, as JSON"),
        Column("extension", INT, "0: its values are in the file; 1, 2 …: the grid was extended to them"),
        Column("seeds", INT, "seeds under which it has a checkpoint to choose"),
        Column("validation", REAL, "avg@k on validation at the best checkpoint of each seed, mean over "
               "seeds; empty where it has none to choose", True),
        Column("sampled_tokens", REAL, "training tokens sampled until the last scored checkpoint, mean "
               "over seeds; empty where it has none to choose", True),
        Column("chosen", FLAG, "it stands for its condition: it alone is scored on test and compared"),
        Column("why", TEXT, "why it was chosen, or why not"),
        Column("edge", TEXT, "of the chosen trial, which of its values are at an edge of the grid, and why "
               "it was not extended; empty where none is", True),
    )),
    Table("comparisons", "a paired difference between two conditions on the test split", _PAIR, (
        *_COMPARED,
        Column("difference", REAL, "condition minus baseline, mean over seeds"),
        Column("low", REAL, "lower bound"),
        Column("high", REAL, "upper bound"),
        Column("covers", TEXT, "the variation that the bounds cover: problems and seeds, two seeds that are too few, or problems within this seed only"),
        Column("seeds", INT, "seeds that were trained under both"),
        Column("caveat", TEXT, "what to keep in mind beside the number; empty where nothing", True),
    )),
    Table("seed_differences", "a paired difference of one seed; comparisons average over these",
          (*_PAIR, "seed"), (
        *_COMPARED,
        Column("seed", INT, "the seed of both; of the condition alone where the baseline is the base"),
        Column("round", INT, "round of the condition's checkpoint"),
        Column("baseline_round", INT, "round of the baseline's checkpoint"),
        Column("difference", REAL, "condition minus baseline"),
    )),
)  # fmt: skip

TABLES: dict[str, Table] = {table.name: table for table in _TABLES}
