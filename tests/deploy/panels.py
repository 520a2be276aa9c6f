"""What the dashboards cannot show of a run."""

GPU = "{{instance}} {{GpuIndex}}"
STAGE = "{{run}} {{stage}}"
WITHOUT = {
    ("training", "Model FLOPs utilisation", STAGE): "the peak of a CPU is not known",
    ("training", "Steps skipped: gradient not finite", STAGE): "every gradient is finite",
    ("training", "Workers that died", ""): "none dies",
    ("ppo", "Updates skipped: gradient not finite", STAGE): "every gradient is finite",
    ("cluster", "Nodes", "pending"): "the autoscaler's own port has it, where there is an autoscaler",
    ("cluster", "GPU", GPU): "no GPU",
    ("cluster", "GPU memory", GPU): "no GPU",
    ("cluster", "GPU power", GPU): "no GPU",
    ("cluster", "GPU temperature", GPU): "no GPU",
    ("cluster", "Processes ended", "for want of memory"): "there is enough",
    ("cluster", "Processes ended", "unexpectedly"): "none ends so",
}
"""(dashboard, panel, legend) -> why an undisturbed run on one machine without a GPU has nothing to show there."""
