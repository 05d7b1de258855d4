"""What people read: the Report, its checks, figures and formats."""
