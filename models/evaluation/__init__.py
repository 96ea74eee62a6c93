"""How detections are judged against benchmarks whose labels and scoring others wrote."""
