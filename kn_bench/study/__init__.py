"""Why methods score as they do: the paper's study on any model, section by section.

material    a model and cases: groups, attributions, located neurons, made once
sections    one file each: a question, what was computed, tables and figures
runner      runs sections, resumes, writes the folder and one self-contained page
"""
