"""Ready-made SQL views for the questions everybody asks; the store creates them in the file."""

from dataclasses import dataclass

from sdcore.store.schema import content_key


@dataclass(frozen=True)
class View:
    """One view: the question it answers, its columns with their meaning, and its SELECT."""

    name: str
    meaning: str
    columns: dict[str, str]
    sql: str

    @property
    def comment(self) -> str:
        """Kept in the file beside the view; another definition has another comment."""
        return f"{self.meaning} [{content_key(self.sql)[:8]}]"


OBJECTION = -0.1
"""Advantage in nats below which a context objects to a token."""

TOKEN_TOLERANCE = 1.1
"""Equal sampled tokens are up to this multiple of what the cheapest condition samples in all."""

_RUN = {"experiment_id": "the experiment run", "condition": "name of the condition"}

_VIEWS = (
    View(
        "trained_rounds",
        "which finished rounds changed the weights: a round without a gradient trained nothing",
        _RUN | {
            "seed": "seed of the run",
            "round": "training round, from 0",
            "updates": "optimizer steps of the round",
            "trained": "one of them had a gradient and a learning rate",
        },
        """
        SELECT p.experiment_id, p.condition, p.seed, p.round - 1 AS round,
               count(u.update_id) AS updates,
               coalesce(bool_or(u.grad_norm > 0 AND u.learning_rate > 0), false) AS trained
        FROM policies p
        LEFT JOIN updates u ON (u.experiment_id, u.condition, u.seed, u.round)
                             = (p.experiment_id, p.condition, p.seed, p.round - 1)
        WHERE p.round > 0
        GROUP BY p.experiment_id, p.condition, p.seed, p.round
        ORDER BY p.experiment_id, p.condition, p.seed, p.round
        """,
    ),
    View(
        "chosen_checkpoints",
        "the checkpoint of each condition and seed that is best on validation, the earliest if "
        "tied; weights that no round has changed do not compete, nor those of a stopped run after "
        "its last good round, nor trials that were not chosen",
        {
            "experiment_id": "the experiment run",
            "budget": "epochs: all checkpoints compete; tokens: those that had sampled at most "
            f"{TOKEN_TOLERANCE:g} times the tokens of the cheapest condition that was not stopped",
            "condition": "name of the condition",
            "seed": "seed of the run",
            "round": "rounds since the base",
            "policy_id": "the weights",
            "validation": "its avg@k on validation",
            "sampled_tokens": "training tokens sampled to get here",
            "mid_schedule": "the budget cuts the condition's schedule off: a run with a schedule "
            "of this budget may be better",
        },
        f"""
        WITH starts AS (
            SELECT experiment_id, condition, seed, min(round) AS round
            FROM trained_rounds WHERE trained GROUP BY ALL
        ), candidates AS (
            SELECT s.*, e.seed IS NOT NULL AS stopped
            FROM scores s JOIN starts t USING (experiment_id, condition, seed)
            LEFT JOIN stops e USING (experiment_id, condition, seed)
            ANTI JOIN (FROM trials WHERE NOT chosen) l
                ON (l.experiment_id, l.trial) = (s.experiment_id, s.condition)
            WHERE s.split = 'validation' AND s.round > t.round
                AND (e.seed IS NULL OR s.round <= e.good_round)
        ), finals AS (
            SELECT experiment_id, condition, max(sampled_tokens) AS tokens,
                   bool_and(stopped) AS stopped
            FROM candidates GROUP BY ALL
        ), budgets AS (
            SELECT experiment_id, unnest(['epochs', 'tokens']) AS budget,
                   unnest(['infinity'::DOUBLE, {TOKEN_TOLERANCE} * coalesce(
                       min(tokens) FILTER (NOT stopped), min(tokens)
                   )]) AS tokens
            FROM finals GROUP BY experiment_id
        )
        SELECT c.experiment_id, b.budget, c.condition, c.seed, c.round, c.policy_id,
               c.avg_at_k AS validation, c.sampled_tokens, f.tokens > b.tokens AS mid_schedule
        FROM candidates c JOIN finals f USING (experiment_id, condition)
        JOIN budgets b USING (experiment_id)
        WHERE c.sampled_tokens <= b.tokens
        QUALIFY row_number() OVER (
            PARTITION BY c.experiment_id, b.budget, c.condition, c.seed
            ORDER BY c.avg_at_k DESC, c.round
        ) = 1
        ORDER BY c.experiment_id, b.budget, c.condition, c.seed
        """,
    ),
    View(
        "feedback_gains",
        "what the feedback added: pairs of conditions that differ in one thing only, from the "
        "table comparisons",
        {
            "experiment_id": "the experiment run",
            "added": "any context: a control instead of none (or of no training); right context: "
            "instead of a control; aligned context: step_aligned instead of reference; token mask: "
            "some tokens instead of all",
            "condition": "the condition with it",
            "baseline": "the condition without it; base is the untrained policy",
            "metric": "avg_at_k, maj_at_k or pass_at_k",
            "budget": "epochs: equal rounds; tokens: equal sampled tokens",
            "difference": "condition minus baseline, mean over seeds",
            "low": "lower bound",
            "high": "upper bound",
            "covers": "the variation that the bounds cover",
            "seeds": "seeds that were trained under both",
            "rates_differ": "the conditions have learning rates of their own",
            "caveat": "what to keep in mind beside the number; empty where nothing",
        },
        """
        WITH settings AS (
            SELECT e.experiment_id, c.key AS condition, c.value->>'context' AS context,
                   coalesce(c.value->'tokens', '{"kind":"all"}'::JSON) AS tokens,
                   (c.value->>'learning_rate')::DOUBLE AS rate,
                   json_merge_patch(
                       c.value, '{"context": null, "tokens": null, "learning_rate": null}'
                   ) AS others
            FROM experiments e, json_each(e.config, '$.conditions') c
        ), ladder AS (
            FROM (VALUES
                ('any context', 'shuffled', 'none'),
                ('any context', 'other_reference', 'none'),
                ('any context', 'wrong_hint', 'none'),
                ('right context', 'reference', 'other_reference'),
                ('right context', 'reference', 'wrong_hint'),
                ('right context', 'step_aligned', 'shuffled'),
                ('aligned context', 'step_aligned', 'reference')
            ) ladder(added, context, instead_of)
        ), pairs AS (
            SELECT s.experiment_id, l.added, s.condition, b.condition AS baseline,
                   s.rate <> b.rate AS rates_differ
            FROM settings s JOIN ladder l USING (context)
            JOIN settings b ON b.context = l.instead_of AND b.experiment_id = s.experiment_id
                AND b.tokens = s.tokens AND b.others = s.others
            UNION ALL
            SELECT DISTINCT s.experiment_id, l.added, s.condition, 'base', false
            FROM settings s JOIN ladder l USING (context) WHERE l.instead_of = 'none'
            UNION ALL
            SELECT s.experiment_id, 'token mask', s.condition, b.condition, s.rate <> b.rate
            FROM settings s JOIN settings b ON b.experiment_id = s.experiment_id
                AND b.context IS NOT DISTINCT FROM s.context AND b.others = s.others
            WHERE b.tokens->>'kind' = 'all' AND s.tokens->>'kind' <> 'all'
        ), differences AS (
            SELECT * FROM comparisons
            UNION ALL BY NAME
            SELECT * REPLACE (baseline AS condition, condition AS baseline,
                              -difference AS difference, -high AS low, -low AS high)
            FROM comparisons
        )
        SELECT experiment_id, added, condition, baseline, metric, budget, difference, low, high,
               covers, seeds, rates_differ, caveat
        FROM pairs JOIN differences USING (experiment_id, condition, baseline)
        ORDER BY experiment_id, list_position(
                     ['any context', 'right context', 'aligned context', 'token mask'], added
                 ), condition, baseline, metric, budget
        """,
    ),
    View(
        "accuracy_by_step",
        "how accuracy grows with training, by condition and split, mean over seeds",
        _RUN | {
            "split": "validation or test",
            "round": "rounds since the base",
            "step": "optimizer steps since the base",
            "seeds": "seeds that have been scored",
            "avg_at_k": "mean accuracy",
            "maj_at_k": "accuracy of the majority answer",
            "pass_at_k": "share of problems with a correct sample",
            "sampled_tokens": "training tokens sampled to get here",
        },
        """
        SELECT s.experiment_id, s.condition, s.split, s.round, p.step, count(*) AS seeds,
               avg(s.avg_at_k) AS avg_at_k, avg(s.maj_at_k) AS maj_at_k,
               avg(s.pass_at_k) AS pass_at_k, avg(s.sampled_tokens) AS sampled_tokens
        FROM scores s JOIN policies p USING (policy_id)
        GROUP BY ALL ORDER BY s.experiment_id, s.split, s.condition, s.round
        """,
    ),
    View(
        "worst_problems",
        "which held-out problems the last policies of a condition fail, worst first",
        _RUN | {
            "split": "validation or test",
            "problem_id": "the problem",
            "question": "what the solver saw",
            "reference": "the reference's final answer",
            "samples": "answers sampled, over seeds",
            "accuracy": "share of them that is correct",
            "wrong_answer": "the commonest wrong answer; empty where none",
        },
        """
        WITH last AS (
            SELECT experiment_id, condition, split, max(round) AS round FROM scores GROUP BY ALL
        )
        SELECT r.experiment_id, r.condition, l.split, r.problem_id,
               any_value(p.question) AS question, any_value(p.reference) AS reference,
               count(*) AS samples, avg(r.correct::INT) AS accuracy,
               mode(r.answer) FILTER (NOT r.correct) AS wrong_answer
        FROM rollouts r
        JOIN last l ON (r.experiment_id, r.condition, r.round, r.purpose)
                     = (l.experiment_id, l.condition, l.round, l.split)
        JOIN problems p ON (r.experiment_id, r.problem_id) = (p.experiment_id, p.problem_id)
        GROUP BY r.experiment_id, r.condition, l.split, r.problem_id
        ORDER BY r.experiment_id, l.split, accuracy, r.condition, r.problem_id
        """,
    ),
    View(
        "cost_per_point",
        "what a point of test accuracy gained over the base cost, at the checkpoints chosen on "
        "validation",
        _RUN | {
            "seeds": "seeds with a chosen checkpoint",
            "gain": "avg@k on test minus the base's, percentage points, mean over seeds",
            "sampled_tokens": "training tokens that the solver sampled, mean over seeds",
            "critic_tokens": "tokens that the critic wrote, mean over seeds",
            "critic_cost": "what the critic cost, in the currency of its prices, mean over seeds",
            "train_seconds": "wall time of the optimizer steps, mean over seeds",
            "sampled_tokens_per_point": "solver tokens per point; empty where nothing is gained",
            "critic_tokens_per_point": "critic tokens per point; empty where nothing is gained",
        },
        """
        WITH chosen AS (
            SELECT experiment_id, condition, seed, round FROM chosen_checkpoints
            WHERE budget = 'epochs'
        ), base AS (
            SELECT experiment_id, avg_at_k FROM scores
            WHERE split = 'test' AND condition = 'base' AND round = 0
        ), critic AS (
            SELECT h.experiment_id, h.condition, h.seed, sum(c.tokens) AS tokens,
                   sum(c.cost) AS cost
            FROM chosen h JOIN rollouts r USING (experiment_id, condition, seed)
            JOIN critiques c USING (rollout_id)
            WHERE r.purpose = 'train' AND r.round < h.round GROUP BY ALL
        ), training AS (
            SELECT h.experiment_id, h.condition, h.seed, sum(u.seconds) AS seconds
            FROM chosen h JOIN updates u USING (experiment_id, condition, seed)
            WHERE u.round < h.round GROUP BY ALL
        ), costs AS (
            SELECT h.experiment_id, h.condition, count(*) AS seeds,
                   100 * avg(s.avg_at_k - b.avg_at_k) AS gain,
                   avg(s.sampled_tokens) AS sampled_tokens,
                   avg(coalesce(c.tokens, 0)) AS critic_tokens,
                   avg(coalesce(c.cost, 0)) AS critic_cost,
                   avg(coalesce(t.seconds, 0)) AS train_seconds
            FROM chosen h JOIN scores s USING (experiment_id, condition, seed, round)
            JOIN base b USING (experiment_id)
            LEFT JOIN critic c USING (experiment_id, condition, seed)
            LEFT JOIN training t USING (experiment_id, condition, seed)
            WHERE s.split = 'test' GROUP BY ALL
        )
        SELECT *, if(gain > 0, sampled_tokens / gain, NULL) AS sampled_tokens_per_point,
               if(gain > 0, critic_tokens / gain, NULL) AS critic_tokens_per_point
        FROM costs ORDER BY experiment_id, condition
        """,
    ),
    View(
        "critic_use",
        "what each language model was asked as critic, by condition, over seeds",
        _RUN | {
            "model": "the model; a cascade has two",
            "traces": "traces that it was asked about, without reused answers",
            "valid": "of them those with a critique that validation accepted",
            "tokens": "tokens that it read and wrote",
            "cost": "what they cost, in the currency of its prices",
        },
        """
        SELECT experiment_id, condition, critic AS model, count(*) AS traces,
               count_if(valid)::BIGINT AS valid, sum(prompt_tokens + tokens)::BIGINT AS tokens,
               sum(cost) AS cost
        FROM (
            SELECT experiment_id, condition, critic, valid, prompt_tokens, tokens, cost
            FROM critiques
            WHERE writer = critic AND content_id IS NOT NULL AND attempts > 0
            UNION ALL
            SELECT experiment_id, condition, critic, valid, prompt_tokens, tokens, cost
            FROM critic_answers
        )
        GROUP BY ALL ORDER BY experiment_id, condition, traces DESC, model
        """,
    ),
    View(
        "training_health",
        "what was lost or looks odd in training, by condition, over seeds and finished rounds",
        _RUN | {
            "rounds": "finished rounds, over all seeds",
            "idle": "share of them that changed no weights; 1 where the condition trained nothing",
            "rollouts": "rollouts of these rounds",
            "cut_off": "share of them that met the token limit",
            "ill_formed": "share of them without well-formed steps and one answer",
            "refused": "critiques of them that were not valid",
            "left_out": "rollouts in no loss: they have no context, or no token with a weight",
            "flat_groups": "groups of GRPO without a signal: all right or all wrong",
            "entropy_first": "entropy of the student at the first optimizer step, nats per token",
            "entropy_last": "entropy at the last one; both are means over seeds, empty without one",
            "logprob_drift_max": "largest difference of engine and trainer on a sampled token",
        },
        """
        WITH rounds AS (
            SELECT experiment_id, condition, count(*) AS rounds,
                   avg((NOT trained)::INT) AS idle
            FROM trained_rounds GROUP BY ALL
        ), finished AS (
            FROM rollouts SEMI JOIN trained_rounds USING (experiment_id, condition, seed, round)
            WHERE purpose = 'train'
        ), sampled AS (
            SELECT experiment_id, condition, count(*) AS rollouts,
                   avg((finish_reason = 'length')::INT) AS cut_off,
                   avg((NOT well_formed)::INT) AS ill_formed
            FROM finished GROUP BY ALL
        ), judged AS (
            SELECT experiment_id, condition, count(*) FILTER (NOT valid) AS refused
            FROM critiques SEMI JOIN finished USING (rollout_id) GROUP BY ALL
        ), steps AS (
            SELECT *, min(step) OVER run AS first, max(step) OVER run AS last,
                   min(step) OVER (PARTITION BY experiment_id, condition, seed, round) AS opens
            FROM updates WHERE round >= 0
            WINDOW run AS (PARTITION BY experiment_id, condition, seed)
        ), stepped AS (
            SELECT experiment_id, condition,
                   sum(zero_variance_groups) FILTER (step = opens)::BIGINT AS flat_groups,
                   sum(rollouts - weightless)::BIGINT AS learned,
                   avg(entropy) FILTER (step = first) AS entropy_first,
                   avg(entropy) FILTER (step = last) AS entropy_last,
                   max(logprob_drift_max) AS logprob_drift_max
            FROM steps GROUP BY ALL
        )
        SELECT experiment_id, condition, rounds, idle, rollouts, cut_off, ill_formed,
               coalesce(refused, 0) AS refused,
               rollouts - coalesce(learned, 0) AS left_out,
               coalesce(flat_groups, 0) AS flat_groups, entropy_first, entropy_last,
               logprob_drift_max
        FROM rounds JOIN sampled USING (experiment_id, condition)
        LEFT JOIN stepped USING (experiment_id, condition)
        LEFT JOIN judged USING (experiment_id, condition)
        ORDER BY experiment_id, condition
        """,
    ),
    View(
        "round_health",
        "how each training round looks, by condition and seed: the signs of a collapse",
        _RUN | {
            "seed": "seed of the run",
            "round": "finished training round, from 0; so many rounds are behind its policy",
            "rollouts": "rollouts of the round",
            "entropy": "mean entropy of the student, nats per token",
            "mean_length": "response tokens per rollout",
            "format_rate": "share of well-formed rollouts",
            "first_token_kl": "mean KL to the teacher at the first response token, nats; empty "
            "without a teacher",
            "base_drift": "estimate of the KL from the base, nats per token; see `updates`",
        },
        """
        WITH sampled AS (
            SELECT experiment_id, condition, seed, round, count(*) AS rollouts,
                   avg(len(response_ids)) AS mean_length, avg(well_formed::INT) AS format_rate
            FROM rollouts SEMI JOIN trained_rounds USING (experiment_id, condition, seed, round)
            WHERE purpose = 'train' GROUP BY ALL
        ), stepped AS (
            SELECT experiment_id, condition, seed, round, arg_min(entropy, step) AS entropy,
                   arg_min(first_token_kl, step) AS first_token_kl,
                   arg_min(base_drift, step) AS base_drift
            FROM updates WHERE round >= 0 GROUP BY ALL
        )
        SELECT experiment_id, condition, seed, round, rollouts, entropy, mean_length, format_rate,
               first_token_kl, base_drift
        FROM sampled LEFT JOIN stepped USING (experiment_id, condition, seed, round)
        ORDER BY experiment_id, condition, seed, round
        """,
    ),
    View(
        "objected_tokens",
        "which tokens a context objects to most, by the sum of their negative advantages",
        {
            "experiment_id": "the experiment run",
            "context": "the context of the teacher",
            "token": "the token as text",
            "tokens": "how often it was scored",
            "objected": f"how often with an advantage below {OBJECTION} nats",
            "advantage": "mean advantage, nats",
            "objection": "sum of its negative advantages, nats",
        },
        f"""
        SELECT experiment_id, context, any_value(token) AS token, count(*) AS tokens,
               count(*) FILTER (advantage < {OBJECTION}) AS objected, avg(advantage) AS advantage,
               sum(least(advantage, 0)) AS objection
        FROM token_signals WHERE teacher_logprob IS NOT NULL
        GROUP BY experiment_id, context, token_id ORDER BY objection
        """,
    ),
    View(
        "failing_steps",
        "at which step training rollouts fail first, among those that a critic has judged",
        _RUN | {
            "step": "number of the earliest wrong step",
            "rollouts": "rollouts whose first wrong step it is",
            "share": "their share of the condition's rollouts with a wrong step",
        },
        """
        SELECT experiment_id, condition, first_wrong_step AS step, count(*) AS rollouts,
               count(*) / sum(count(*)) OVER (PARTITION BY experiment_id, condition) AS share
        FROM critiques SEMI JOIN rollouts USING (rollout_id)
        WHERE valid AND first_wrong_step IS NOT NULL
        GROUP BY experiment_id, condition, first_wrong_step
        ORDER BY experiment_id, condition, step
        """,
    ),
)  # fmt: skip

VIEWS: dict[str, View] = {view.name: view for view in _VIEWS}
