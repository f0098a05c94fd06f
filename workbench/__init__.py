"""The Media Alignment Workbench: pipelines are made to please rewards, by methods, in front of judges."""
