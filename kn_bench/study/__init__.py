"""Why methods score as they do: the paper's study on any model, section by section.

material    a model and cases, with groups, attributions and located neurons computed once
sections    one file per question: what was computed, tables and figures
runner      runs the sections, resumes, and writes the folder with a self-contained page
"""
