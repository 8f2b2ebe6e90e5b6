"""The names of the explanation methods, each with its map of the features A and the gradient g of the explained logit.

Needs no PyTorch.
"""

METHODS = {
    "grad-cam": "Σ_c mean(g_c)·A_c (Selvaraju et al. 2017, eq. 1 and 2)",
    "grad-cam++": "Σ_c (Σ w_c·relu(g_c))·A_c, w = g²/(2·g² + ΣA·g³) (Chattopadhyay et al. 2018, eq. 19)",
    "hirescam": "Σ_c g_c⊙A_c (Draelos and Carin 2020)",
    "layercam": "Σ_c relu(g_c)⊙A_c (Jiang et al. 2021)",
}
