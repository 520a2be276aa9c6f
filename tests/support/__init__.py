"""Models, processes, clusters and services that several tests share."""
