"""The shared VAE module: the model of normal counts, how it is trained, cut and read.

It knows nothing of Snakemake, plotting or file formats (its own model files aside) and imports
numpy, scipy, torch and safetensors only. Read ``model.py`` first: the generative model on one page.
"""
