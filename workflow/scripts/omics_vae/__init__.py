"""The shared VAE module: the model of normal counts, how it is trained, cut and read.

It knows nothing of Snakemake, plotting or the input's formats and imports numpy, scipy, numba,
h5py, torch and safetensors only. Read ``model.py`` first: the generative model on one page.
"""
