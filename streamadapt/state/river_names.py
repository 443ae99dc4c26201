"""The names that a pickled river object may contain: of river's classes and functions.

The list of classes has every class of which an object of river 0.25 to 0.26 can hold an instance.
``python tests/river_names.py`` adds the classes of the river that is installed, and
``tests/test_river_names.py`` fails if one is missing.
"""

from __future__ import annotations

__all__ = ["RIVER_CLASSES", "RIVER_FUNCTIONS"]

# Functions that river's estimators hold as attributes: arithmetic or text, and no side effects.
RIVER_FUNCTIONS = {
    "river._river_rust.vectordict": "euclidean_distance_dict euclidean_distance_tuple",
    "river.feature_extraction.vectorize": (
        "find_all_ngrams find_ngrams remove_stop_words strip_accents_unicode "
        "tokenize_using_regex_pattern"
    ),
    "river.forest.online_extra_trees": (
        "ExtraTrees._detection_mode_all ExtraTrees._detection_mode_drop "
        "ExtraTrees._detection_mode_off"
    ),
    "river.metrics.mutual_info": "_average_arithmetic _average_geometric",
    "river.naive_bayes.gaussian": "GaussianNB._make_gaussian",
    "river.tree.splitter.ebst_splitter": (
        "EBSTNode._update_estimator_multivariate EBSTNode._update_estimator_univariate"
    ),
    "river.tree.splitter.nominal_splitter_reg": (
        "NominalSplitterReg._update_estimator_multivariate "
        "NominalSplitterReg._update_estimator_univariate"
    ),
    "river.utils.math": "minkowski_distance",
}

# By module.
RIVER_CLASSES = {
    "river._river_rust.drift": "AdaptiveWindowing",
    "river._river_rust.stats": (
        "RsEWMean RsEWVar RsIQR RsKurtosis RsPeakToPeak RsQuantile RsRollingIQR "
        "RsRollingPRAUC RsRollingQuantile RsRollingROCAUC RsSkew"
    ),
    "river._river_rust.vectordict": "VectorDict",
    "river.active.entropy": "EntropySampler",
    "river.anomaly.filter": "QuantileFilter ThresholdFilter",
    "river.anomaly.gaussian": "GaussianScorer",
    "river.anomaly.hst": "HSTBranch HSTLeaf HalfSpaceTrees",
    "river.anomaly.loda": "LODA",
    "river.anomaly.lof": "LocalOutlierFactor",
    "river.anomaly.pad": "PredictiveAnomalyDetection",
    "river.anomaly.sad": "StandardAbsoluteDeviation",
    "river.anomaly.svm": "OneClassSVM",
    "river.bandit.bayes_ucb": "BayesUCB",
    "river.bandit.epsilon_greedy": "EpsilonGreedy",
    "river.bandit.exp3": "Exp3",
    "river.bandit.lin_ucb": "LinUCBDisjoint",
    "river.bandit.random": "RandomPolicy",
    "river.bandit.thompson": "ThompsonSampling",
    "river.bandit.ucb": "UCB",
    "river.base.drift_detector": (
        "BinaryDriftAndWarningDetector BinaryDriftDetector DriftAndWarningDetector DriftDetector"
    ),
    "river.cluster.clustream": "CluStream CluStreamMicroCluster",
    "river.cluster.dbstream": "DBSTREAM DBSTREAMMicroCluster",
    "river.cluster.denstream": "DenStream DenStream.BufferItem DenStreamMicroCluster",
    "river.cluster.k_means": "KMeans",
    "river.cluster.odac": "ODAC ODACChildren ODACCluster",
    "river.cluster.streamkmeans": "STREAMKMeans",
    "river.cluster.textclust": (
        "TextClust TextClust.Distances TextClust.MicroCluster TextClust.TfContainer"
    ),
    "river.compose.func": "FuncTransformer",
    "river.compose.grouper": "Grouper",
    "river.compose.pipeline": "Pipeline",
    "river.compose.product": "TransformerProduct",
    "river.compose.renamer": "Prefixer Renamer Suffixer",
    "river.compose.select": "Discard Select SelectType",
    "river.compose.target_transform": "TargetTransformRegressor",
    "river.compose.union": "TransformerUnion",
    "river.conf.interval": "Interval",
    "river.conf.jackknife": "RegressionJackknife",
    "river.covariance.emp": "EmpiricalCovariance EmpiricalPrecision",
    "river.covariance.ewa": (
        "EwaCovariance EwaPrecision LedoitWolfCovariance OASCovariance ShrunkCovariance "
        "_EWCovariance"
    ),
    "river.drift.adwin": "ADWIN",
    "river.drift.binary.ddm": "DDM",
    "river.drift.binary.eddm": "EDDM",
    "river.drift.binary.fhddm": "FHDDM",
    "river.drift.binary.hddm_a": "HDDMA",
    "river.drift.binary.hddm_w": "HDDMW SampleInfo",
    "river.drift.dummy": "DummyDriftDetector",
    "river.drift.kswin": "KSWIN",
    "river.drift.no_drift": "NoDrift",
    "river.drift.page_hinkley": "PageHinkley",
    "river.drift.retrain": "DriftRetrainingClassifier",
    "river.dummy": "NoChangeClassifier PriorClassifier StatisticRegressor",
    "river.ensemble.bagging": (
        "ADWINBaggingClassifier BaggingClassifier BaggingRegressor LeveragingBaggingClassifier"
    ),
    "river.ensemble.boosting": "ADWINBoostingClassifier AdaBoostClassifier BOLEClassifier",
    "river.ensemble.ewa": "EWARegressor",
    "river.ensemble.stacking": "StackingClassifier",
    "river.ensemble.streaming_random_patches": (
        "BaseSRPClassifier BaseSRPRegressor SRPClassifier SRPRegressor"
    ),
    "river.ensemble.voting": "VotingClassifier",
    "river.facto.ffm": "FFMClassifier FFMRegressor",
    "river.facto.fm": "FMClassifier FMRegressor",
    "river.facto.fwfm": "FwFMClassifier FwFMRegressor",
    "river.facto.hofm": "HOFMClassifier HOFMRegressor",
    "river.feature_extraction.agg": "Agg TargetAgg",
    "river.feature_extraction.kernel_approx": "RBFSampler RandomTreesEmbedding",
    "river.feature_extraction.poly": "PolynomialExtender",
    "river.feature_extraction.vectorize": "BagOfWords TFIDF",
    "river.feature_selection.k_best": "SelectKBest",
    "river.feature_selection.random": "PoissonInclusion",
    "river.feature_selection.variance": "VarianceThreshold",
    "river.forest.adaptive_random_forest": (
        "ARFClassifier ARFRegressor BaseTreeClassifier BaseTreeRegressor"
    ),
    "river.forest.aggregated_mondrian_forest": "AMFClassifier AMFRegressor",
    "river.forest.online_extra_trees": (
        "BaggingSampler ConstantSampler ETRegressor OXTRegressor SubBaggingSampler"
    ),
    "river.imblearn.chebyshev": "ChebyshevOverSampler ChebyshevUnderSampler",
    "river.imblearn.hard_sampling": "HardSamplingClassifier HardSamplingRegressor Triplet",
    "river.imblearn.random": "RandomOverSampler RandomSampler RandomUnderSampler",
    "river.linear_model.ad_predictor": "AdPredictor",
    "river.linear_model.alma": "ALMAClassifier",
    "river.linear_model.bayesian_lin_reg": "BayesianLinearRegression",
    "river.linear_model.lin_reg": "LinearRegression",
    "river.linear_model.log_reg": "LogisticRegression",
    "river.linear_model.pa": "PAClassifier PARegressor",
    "river.linear_model.perceptron": "Perceptron",
    "river.linear_model.softmax": "SoftmaxRegression",
    "river.metrics.accuracy": "Accuracy",
    "river.metrics.balanced_accuracy": "BalancedAccuracy",
    "river.metrics.base": "Metrics",
    "river.metrics.confusion": "ConfusionMatrix",
    "river.metrics.cross_entropy": "CrossEntropy",
    "river.metrics.fbeta": (
        "F1 FBeta MacroF1 MacroFBeta MicroF1 MicroFBeta MultiFBeta WeightedF1 WeightedFBeta"
    ),
    "river.metrics.fowlkes_mallows": "FowlkesMallows",
    "river.metrics.geometric_mean": "GeometricMean",
    "river.metrics.jaccard": "Jaccard MacroJaccard MicroJaccard WeightedJaccard",
    "river.metrics.kappa": "CohenKappa",
    "river.metrics.log_loss": "LogLoss",
    "river.metrics.mae": "MAE",
    "river.metrics.mape": "MAPE",
    "river.metrics.mcc": "MCC",
    "river.metrics.mse": "MSE RMSE RMSLE",
    "river.metrics.multioutput.confusion": "MultiLabelConfusionMatrix",
    "river.metrics.multioutput.exact_match": "ExactMatch",
    "river.metrics.multioutput.macro": "MacroAverage",
    "river.metrics.multioutput.micro": "MicroAverage",
    "river.metrics.multioutput.per_output": "PerOutput",
    "river.metrics.multioutput.sample_average": "SampleAverage",
    "river.metrics.mutual_info": "AdjustedMutualInfo MutualInfo NormalizedMutualInfo",
    "river.metrics.precision": "MacroPrecision MicroPrecision Precision WeightedPrecision",
    "river.metrics.r2": "R2",
    "river.metrics.rand": "AdjustedRand Rand",
    "river.metrics.recall": "MacroRecall MicroRecall Recall WeightedRecall",
    "river.metrics.report": "ClassificationReport",
    "river.metrics.roc_auc": "ROCAUC",
    "river.metrics.rolling_pr_auc": "RollingPRAUC",
    "river.metrics.rolling_roc_auc": "RollingROCAUC",
    "river.metrics.silhouette": "Silhouette",
    "river.metrics.smape": "SMAPE",
    "river.metrics.vbeta": "Completeness Homogeneity VBeta",
    "river.model_selection.bandit": "BanditClassifier BanditModelSection BanditRegressor",
    "river.model_selection.greedy": "GreedyRegressor",
    "river.model_selection.sh": "SuccessiveHalvingClassifier SuccessiveHalvingRegressor",
    "river.multiclass.occ": "OutputCodeClassifier",
    "river.multiclass.ovo": "OneVsOneClassifier",
    "river.multiclass.ovr": "OneVsRestClassifier",
    "river.multioutput.chain": (
        "ClassifierChain MonteCarloClassifierChain ProbabilisticClassifierChain RegressorChain"
    ),
    "river.multioutput.encoder": "MultiClassEncoder",
    "river.multioutput.per_output": "PerOutputRegressor",
    "river.multioutput.per_output_classifier": "PerOutputClassifier",
    "river.naive_bayes.bernoulli": "BernoulliNB",
    "river.naive_bayes.complement": "ComplementNB",
    "river.naive_bayes.gaussian": "GaussianNB",
    "river.naive_bayes.multinomial": "MultinomialNB",
    "river.neighbors.ann.nn_vertex": "Vertex",
    "river.neighbors.ann.swinn": "SWINN",
    "river.neighbors.base": "FunctionWrapper",
    "river.neighbors.knn_classifier": "KNNClassifier",
    "river.neighbors.knn_regressor": "KNNRegressor",
    "river.neighbors.lazy": "LazySearch",
    "river.optim.ada_bound": "AdaBound",
    "river.optim.ada_delta": "AdaDelta",
    "river.optim.ada_grad": "AdaGrad",
    "river.optim.ada_max": "AdaMax",
    "river.optim.adam": "Adam",
    "river.optim.ams_grad": "AMSGrad",
    "river.optim.average": "Averager",
    "river.optim.ftrl": "FTRLProximal",
    "river.optim.initializers": "Constant Normal Zeros",
    "river.optim.losses": (
        "Absolute BinaryFocalLoss Cauchy CrossEntropy EpsilonInsensitiveHinge Hinge Huber "
        "Log Poisson Quantile Squared"
    ),
    "river.optim.momentum": "Momentum",
    "river.optim.nadam": "Nadam",
    "river.optim.nesterov": "NesterovMomentum",
    "river.optim.newton": "Newton",
    "river.optim.rms_prop": "RMSProp",
    "river.optim.schedulers": "Constant InverseScaling Optimal",
    "river.optim.sgd": "SGD",
    "river.preprocessing.feature_hasher": "FeatureHasher",
    "river.preprocessing.gap_encoder": "GapEncoder",
    "river.preprocessing.impute": "Constant PreviousImputer StatImputer",
    "river.preprocessing.lda": "LDA",
    "river.preprocessing.one_hot": "OneHotEncoder",
    "river.preprocessing.ordinal": "OrdinalEncoder",
    "river.preprocessing.pred_clipper": "PredClipper",
    "river.preprocessing.random_projection": "GaussianRandomProjector SparseRandomProjector",
    "river.preprocessing.scale": (
        "AdaptiveStandardScaler Binarizer MaxAbsScaler MinMaxScaler Normalizer "
        "RobustScaler StandardScaler"
    ),
    "river.preprocessing.scale_target": "TargetMinMaxScaler TargetStandardScaler",
    "river.proba.beta": "Beta",
    "river.proba.gaussian": "Gaussian MultivariateGaussian",
    "river.proba.multinomial": "Multinomial",
    "river.reco.baseline": "Baseline",
    "river.reco.biased_mf": "BiasedMF",
    "river.reco.funk_mf": "FunkMF",
    "river.reco.normal": "RandomNormal",
    "river.rules.amrules": "AMRules AdaptiveRegressor MeanRegressor RegRule",
    "river.rules.base": "Literal NominalLiteral NumericLiteral",
    "river.sketch.counter": "Counter",
    "river.sketch.heavy_hitters": "HeavyHitters",
    "river.sketch.histogram": "Bin Histogram",
    "river.sketch.n_unique": "NUnique",
    "river.sketch.set": "Set",
    "river.stats.auto_corr": "AutoCorr",
    "river.stats.base": "Link",
    "river.stats.chi_squared": "ChiSquared",
    "river.stats.count": "Count",
    "river.stats.cov": "Cov",
    "river.stats.entropy": "Entropy",
    "river.stats.ewcov": "EWCov",
    "river.stats.ewmean": "EWMean",
    "river.stats.ewvar": "EWVar",
    "river.stats.iqr": "IQR RollingIQR",
    "river.stats.kolmogorov_smirnov": "KolmogorovSmirnov _Node",
    "river.stats.kurtosis": "Kurtosis",
    "river.stats.link": "Link",
    "river.stats.mad": "MAD",
    "river.stats.maximum": "AbsMax Max RollingAbsMax RollingMax",
    "river.stats.mean": "BayesianMean Mean",
    "river.stats.minimum": "Min RollingMin",
    "river.stats.mode": "Mode RollingMode",
    "river.stats.pearson": "PearsonCorr",
    "river.stats.ptp": "PeakToPeak RollingPeakToPeak",
    "river.stats.quantile": "Quantile RollingQuantile",
    "river.stats.sem": "SEM",
    "river.stats.shift": "Shift",
    "river.stats.skew": "Skew",
    "river.stats.summing": "Sum",
    "river.stats.var": "Var",
    "river.time_series.holt_winters": (
        "AdditiveLevel AdditiveSeason Component HoltWinters MultiplicativeLevel "
        "MultiplicativeSeason Trend"
    ),
    "river.time_series.metrics": "HorizonAggMetric HorizonMetric",
    "river.time_series.snarimax": "Differencer SNARIMAX",
    "river.tree.base": "Leaf",
    "river.tree.extremely_fast_decision_tree": "ExtremelyFastDecisionTreeClassifier",
    "river.tree.hoeffding_adaptive_tree_classifier": "HoeffdingAdaptiveTreeClassifier",
    "river.tree.hoeffding_adaptive_tree_regressor": "HoeffdingAdaptiveTreeRegressor",
    "river.tree.hoeffding_tree_classifier": "HoeffdingTreeClassifier",
    "river.tree.hoeffding_tree_regressor": "HoeffdingTreeRegressor",
    "river.tree.isoup_tree_regressor": "ISOUPTreeRegressor",
    "river.tree.last_classifier": "LASTClassifier",
    "river.tree.losses": "BinaryCrossEntropyLoss SquaredErrorLoss",
    "river.tree.mondrian.mondrian_tree": "MondrianTree",
    "river.tree.mondrian.mondrian_tree_classifier": "MondrianTreeClassifier",
    "river.tree.mondrian.mondrian_tree_nodes": (
        "MondrianBranch MondrianBranchClassifier MondrianBranchRegressor MondrianLeaf "
        "MondrianLeafClassifier MondrianLeafRegressor MondrianNode MondrianNodeClassifier "
        "MondrianNodeRegressor"
    ),
    "river.tree.mondrian.mondrian_tree_regressor": "MondrianTreeRegressor",
    "river.tree.nodes.arf_htc_nodes": (
        "RandomLeafMajorityClass RandomLeafNaiveBayes RandomLeafNaiveBayesAdaptive"
    ),
    "river.tree.nodes.arf_htr_nodes": "RandomLeafAdaptive RandomLeafMean RandomLeafModel",
    "river.tree.nodes.branch": (
        "NominalBinaryBranch NominalMultiwayBranch NumericBinaryBranch NumericMultiwayBranch"
    ),
    "river.tree.nodes.efdtc_nodes": (
        "EFDTLeafMajorityClass EFDTLeafNaiveBayes EFDTLeafNaiveBayesAdaptive "
        "EFDTNominalBinaryBranch EFDTNominalMultiwayBranch EFDTNumericBinaryBranch "
        "EFDTNumericMultiwayBranch"
    ),
    "river.tree.nodes.et_nodes": "ETLeafAdaptive ETLeafMean ETLeafModel",
    "river.tree.nodes.hatc_nodes": (
        "AdaLeafClassifier AdaNomBinaryBranchClass AdaNomMultiwayBranchClass "
        "AdaNumBinaryBranchClass AdaNumMultiwayBranchClass"
    ),
    "river.tree.nodes.hatr_nodes": (
        "AdaLeafRegAdaptive AdaLeafRegMean AdaLeafRegModel AdaNomBinaryBranchReg "
        "AdaNomMultiwayBranchReg AdaNumBinaryBranchReg AdaNumMultiwayBranchReg"
    ),
    "river.tree.nodes.htc_nodes": "LeafMajorityClass LeafNaiveBayes LeafNaiveBayesAdaptive",
    "river.tree.nodes.htr_nodes": "LeafAdaptive LeafMean LeafModel",
    "river.tree.nodes.isouptr_nodes": (
        "LeafAdaptiveMultiTarget LeafMeanMultiTarget LeafModelMultiTarget"
    ),
    "river.tree.nodes.last_nodes": (
        "LeafMajorityClassWithDetector LeafNaiveBayesAdaptiveWithDetector "
        "LeafNaiveBayesWithDetector"
    ),
    "river.tree.nodes.sgt_nodes": "SGTLeaf",
    "river.tree.padded": "PaddedBranch PaddedLeaf",
    "river.tree.split_criterion.gini_split_criterion": "GiniSplitCriterion",
    "river.tree.split_criterion.hellinger_distance_criterion": "HellingerDistanceCriterion",
    "river.tree.split_criterion.info_gain_split_criterion": "InfoGainSplitCriterion",
    "river.tree.split_criterion.intra_cluster_variance_reduction_split_criterion": (
        "IntraClusterVarianceReductionSplitCriterion"
    ),
    "river.tree.split_criterion.variance_ratio_split_criterion": "VarianceRatioSplitCriterion",
    "river.tree.split_criterion.variance_reduction_split_criterion": (
        "VarianceReductionSplitCriterion"
    ),
    "river.tree.splitter.ebst_splitter": "EBSTNode EBSTSplitter",
    "river.tree.splitter.exhaustive_splitter": "ExhaustiveNode ExhaustiveSplitter",
    "river.tree.splitter.gaussian_splitter": "GaussianSplitter",
    "river.tree.splitter.histogram_splitter": "HistogramSplitter",
    "river.tree.splitter.nominal_splitter_classif": "NominalSplitterClassif",
    "river.tree.splitter.nominal_splitter_reg": "NominalSplitterReg",
    "river.tree.splitter.qo_splitter": "FeatureQuantizer QOSplitter Slot",
    "river.tree.splitter.random_splitter": "RegRandomSplitter",
    "river.tree.splitter.sgt_quantizer": "DynamicQuantizer StaticQuantizer",
    "river.tree.splitter.tebst_splitter": "TEBSTSplitter",
    "river.tree.stochastic_gradient_tree": "SGTClassifier SGTRegressor StochasticGradientTree",
    "river.tree.utils": "BranchFactory GradHess GradHessMerit GradHessStats",
    "river.utils.rolling": "Rolling TimeRolling",
    "river.utils.sorted_window": "SortedWindow",
}
