"""What runs on the laptop and the head node: experiment, plan, jobs, campaign, tracking and the command line. No torch at module level."""
