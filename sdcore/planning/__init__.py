"""An experiment planned from its settings and the model's shape: time, memory, disk, money."""
