"""Where is it: attribution, selection of knowledge neurons, measures of localisation, tracing."""
