"""What a run tells MLflow: spools that outlive their writers, the client that opens runs, and whoever carries the one to the other."""
