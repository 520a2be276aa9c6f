"""Every method on four tasks: what it reaches, with how many parameters, how much memory, how long a step."""
