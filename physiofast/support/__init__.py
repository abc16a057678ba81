"""What every step leans on and what knows no signals: files that are whole or absent, locks, refusals, signals."""
