"""The command `sdcore`."""
