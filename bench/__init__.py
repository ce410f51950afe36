"""What a user runs: plan the trials of an experiment, run them, judge them, report them."""
