"""Tables, figures and the HTML page, made from the folders of runs and comparisons."""
