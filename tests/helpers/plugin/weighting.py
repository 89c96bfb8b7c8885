import torch

from sdcore.config import WeightingSettings, weighting
from sdcore.training.weightings import Region


class FadingSettings(WeightingSettings):
    after: float = 0.5


@weighting("regions", "divergences", settings=FadingSettings)
def fading(tokens, after):
    """Less after the error, and nothing where the context changes nothing."""
    weights_T = torch.where(tokens.regions_T == Region.AFTER, after, 1.0)
    return torch.where(tokens.divergences_T > 0, weights_T, 0.0)
