"""Several processes that train one policy: collectives and the controller of a torchrun."""
