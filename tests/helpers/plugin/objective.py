from sdcore.config import ConditionSettings, TeacherConfig, objective
from sdcore.training.objectives import Objective, against_teacher, differentiated


class SquaredSettings(ConditionSettings):
    context: str
    power: float = 2.0


@objective(SquaredSettings)
class Squared(Objective[SquaredSettings]):
    """Distance between the log-probs of the sampled token, to a power."""

    @property
    def teacher(self):
        return TeacherConfig()

    def loss(self, examples, device):
        def distance(log_q_NV, chunk):
            tokens_N1 = chunk.tokens_N[:, None]
            mine, gap = log_q_NV.gather(1, tokens_N1), chunk.pair.log_ratio_NV.gather(1, tokens_N1)
            theirs = chunk.log_q_NV.gather(1, tokens_N1) + gap
            return (theirs - mine).abs().pow(self.settings.power)[:, 0]

        return differentiated(distance)

    def advantage(self, examples, scores):
        return against_teacher(scores)
