"""What joins the layers into the functions of ``import kn_bench``."""
