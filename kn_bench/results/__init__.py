"""What runs leave behind: the log, the leaderboard, comparisons, figures."""
